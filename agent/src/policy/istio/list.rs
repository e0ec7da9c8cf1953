//! Lists of values, read so that one which cannot be right never just drops out of its rule.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::policy::{Defect, DefectKind, ResourceRef};

/// What becomes of a rule of which a part cannot be evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum Effect {
    /// It admits nobody.
    Admits,
    /// It denies whatever its other parts match.
    Denies,
}

/// Reads the parts of one rule, and remembers whether it can be evaluated.
pub(in crate::policy) struct Reader<'a> {
    pub resource: &'a ResourceRef,
    pub effect: Effect,
    pub defects: &'a mut Vec<Defect>,
    /// The first thing of the present rule that cannot be evaluated.
    pub broken: Option<Arc<str>>,
}

impl Reader<'_> {
    pub fn defect(&mut self, field: &str, kind: DefectKind, what: &str) {
        let outcome = match self.effect {
            Effect::Admits => "the rule admits nobody",
            Effect::Denies => "the rule denies whatever its other conditions match",
        };
        self.broken.get_or_insert_with(|| format!("{field}: {what}").into());
        self.defects.push(Defect {
            resource: self.resource.clone(),
            field: field.to_string(),
            kind,
            message: format!("{what}; {outcome}"),
        });
    }

    /// A positive list. Where nothing can be said of one value, the whole list says nothing.
    pub fn any_of<T>(
        &mut self,
        field: &str,
        value: Option<&Value>,
        read: impl Fn(&str) -> Result<Vec<T>, String>,
    ) -> Vec<T> {
        let (values, bad) = self.values(field, value, read);
        if bad { Vec::new() } else { values }
    }

    /// A negative list. A value of which nothing can be said excludes nothing from what is denied.
    pub fn none_of<T>(
        &mut self,
        field: &str,
        value: Option<&Value>,
        read: impl Fn(&str) -> Result<Vec<T>, String>,
    ) -> Vec<T> {
        self.values(field, value, read).0
    }

    fn values<T>(
        &mut self,
        field: &str,
        value: Option<&Value>,
        read: impl Fn(&str) -> Result<Vec<T>, String>,
    ) -> (Vec<T>, bool) {
        let Some(value) = value.filter(|value| !value.is_null()) else { return (Vec::new(), false) };
        let Some(items) = value.as_array() else {
            self.defect(field, DefectKind::Invalid, "it is no list");
            return (Vec::new(), true);
        };
        let parsed = items.iter().map(|item| match item.as_str() {
            Some("") => Err("an empty value matches nothing".to_string()),
            Some(text) => read(text),
            None => Err(format!("{item} is no string")),
        });
        self.readable(field, parsed)
    }

    /// What can be said of a list's values, and whether of one nothing can.
    pub fn readable<T>(
        &mut self,
        field: &str,
        parsed: impl IntoIterator<Item = Result<Vec<T>, String>>,
    ) -> (Vec<T>, bool) {
        let (mut values, mut bad) = (Vec::new(), false);
        for (at, parsed) in parsed.into_iter().enumerate() {
            match parsed {
                Ok(parsed) => values.extend(parsed),
                Err(what) => {
                    bad = true;
                    self.defect(&format!("{field}[{at}]"), DefectKind::Invalid, &what);
                }
            }
        }
        (values, bad)
    }

    /// What follows is of a newer Istio than we know, or misspelt: it may be what narrows the rule.
    pub fn unknown_fields(&mut self, field: &str, fields: &Map<String, Value>, known: &[&str]) {
        for (name, value) in fields {
            if !known.contains(&&**name) && !value.is_null() {
                let path = if field.is_empty() { name.clone() } else { format!("{field}.{name}") };
                self.defect(&path, DefectKind::Invalid, "there is no such field");
            }
        }
    }
}

/// A list of objects under `name`; nothing where it is absent.
pub(super) fn objects<'v>(
    reader: &mut Reader<'_>,
    field: &str,
    value: Option<&'v Value>,
) -> Vec<(String, &'v Map<String, Value>)> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Vec::new() };
    let Some(items) = value.as_array() else {
        reader.defect(field, DefectKind::Invalid, "it is no list");
        return Vec::new();
    };
    let mut found = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let field = format!("{field}[{at}]");
        match item.as_object() {
            Some(item) => found.push((field, item)),
            None => reader.defect(&field, DefectKind::Invalid, "it is no object"),
        }
    }
    found
}
