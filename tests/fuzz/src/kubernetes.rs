//! Policies of both dialects as they are in a repository.

use std::sync::Arc;

use serde_json::Value;
use underpass::discovery::ask::{Asked, Offline, Word};
use underpass::discovery::manifest::{self, Manifest};
use underpass::model::TrustDomain;
use underpass::policy::{MtlsDefaults, Object, PolicySet, Resources, Settings, Subject};

/// # Panics
/// When what is told of a question is not what decides, or a policy lets somebody in that it keeps out where nothing
/// in it is unknown.
pub fn kubernetes(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let Ok(read) = manifest::read(text) else { return false };
    let Ok(objects) = read.into_iter().collect::<Result<Vec<_>, _>>() else { return false };
    let Some(answers) = answers(&objects) else { return false };
    for damaged in damages(&objects) {
        let after = self::answers(&damaged).unwrap_or_default();
        for (asked, (before, after)) in asked().iter().zip(answers.iter().zip(&after)) {
            let wider = *before == Word::Deny && *after == Word::Allow;
            assert!(!wider, "{asked:?} is denied, and allowed by {damaged:?}");
        }
    }
    true
}

/// What policy says to each question. None where the pods among the objects cannot be.
fn answers(objects: &[Object]) -> Option<Vec<Word>> {
    let mut objects = objects.to_vec();
    objects.extend(manifest::read(WORLD).ok()?.into_iter().flatten());
    let domain = TrustDomain::cluster_local();
    let manifest = Manifest::new(objects, &domain).ok()?;
    let settings = Settings::new(domain);
    let policies: Vec<_> = manifest.objects.iter().cloned().map(Arc::new).collect();
    let resources = Resources::new(&policies, settings.clone());
    let normalization = settings.path_normalization;
    let set = PolicySet::default().next([], MtlsDefaults::default(), Some(Arc::new(resources)));
    let world = Offline::new(manifest, settings);
    let _ = world.analyze();
    let answer = |asked: &Asked| {
        let question = asked.resolve(&world, normalization).expect("a question about what there is");
        let policy = set.compile(&Subject::from(&*question.to));
        let request = question.request.as_ref().map(|request| request.as_request());
        let decided = policy.evaluate(&question.conn, request.as_ref()).is_allow();
        let told = world.answer(asked).expect("the same question");
        assert_eq!(told.verdict == Word::Allow, decided, "{told:?}");
        told.verdict
    };
    Some(asked().iter().map(answer).collect())
}

/// The pods that are asked about; they stand in for those of the same names.
const WORLD: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: api, namespace: shop, labels: {app: api}}, status: {podIP: 10.0.0.1},
 spec: {serviceAccountName: api, containers: [{ports: [{name: http, containerPort: 8080}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, status: {podIP: 10.0.0.2},
 spec: {serviceAccountName: web}}
";

fn asked() -> Vec<Asked> {
    let connection = |from: &str| Asked { from: from.into(), to: "shop/api".into(), ..Asked::default() };
    let get = |asked: Asked| Asked { path: Some("/api/orders/7".into()), host: Some("api".into()), ..asked };
    let from = ["shop/web", "plaintext", "spiffe://cluster.local/ns/dev/sa/tool"];
    from.into_iter().flat_map(|from| [connection(from), get(connection(from))]).collect()
}

/// The same objects with a field that nobody knows in one of the objects of a policy's spec, each place once.
fn damages(objects: &[Object]) -> Vec<Vec<Object>> {
    let mut all = Vec::new();
    for (at, object) in objects.iter().enumerate() {
        if !matches!(&*object.group, "security.istio.io" | "policy.linkerd.io") {
            continue;
        }
        for place in 0..MOST {
            let mut damaged = objects.to_vec();
            let mut left = place;
            if !damage(&mut damaged[at].spec, &mut left) {
                break;
            }
            all.push(damaged);
        }
    }
    all.truncate(MOST);
    all
}

/// Places in one input: each costs as much as the input itself.
const MOST: usize = 24;

/// Into the `left`th object, counted from outside.
fn damage(value: &mut Value, left: &mut usize) -> bool {
    match value {
        Value::Object(fields) => {
            if *left == 0 {
                fields.insert("nobodyKnows".into(), Value::Number(7.into()));
                return true;
            }
            *left -= 1;
            fields.values_mut().any(|value| damage(value, left))
        }
        Value::Array(items) => items.iter_mut().any(|value| damage(value, left)),
        _ => false,
    }
}
