//! The `resources` section.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::Converter;
use crate::discovery::yaml::Path;
use crate::policy::{Object, Resources, Settings};

impl Converter {
    pub(super) fn resources(
        &mut self,
        values: Vec<Value>,
        settings: Settings,
        before: Option<&Resources>,
    ) -> Resources {
        let section = Path::default().key("resources");
        let mut objects = Vec::with_capacity(values.len());
        let mut places = HashMap::new();
        for (at, value) in values.into_iter().enumerate() {
            match Object::read(value) {
                Ok(object) => {
                    let name = (object.kind.clone(), object.meta.namespace.clone(), object.meta.name.clone());
                    let whole = (object.group.clone(), name);
                    if let Some(first) = places.insert(whole, at) {
                        self.errors
                            .add(section.index(at), format!("resources[{first}] is the same object already"));
                    }
                    objects.push(Arc::new(object));
                }
                Err(e) => self.errors.add(section.index(at), format!("this is no Kubernetes object: {e}")),
            }
        }
        let resources = Resources::after(before, &objects, settings);
        for defect in resources.defects() {
            let resource = &defect.resource;
            let (kind, group) =
                resource.kind.as_str().split_once('.').unwrap_or((resource.kind.as_str(), ""));
            let name = (kind.into(), resource.namespace.clone(), resource.name.clone());
            let place =
                places.get(&(group.into(), name)).map_or_else(|| section.clone(), |at| section.index(*at));
            self.warnings.add(place, format!("{}: {}", defect.field, defect.message));
        }
        resources
    }
}
