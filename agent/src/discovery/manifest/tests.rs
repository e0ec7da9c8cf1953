use super::*;

fn manifest(text: &str) -> Manifest {
    let objects = read(text).unwrap().into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    Manifest::new(objects, &TrustDomain::cluster_local()).unwrap()
}

#[test]
fn a_pod_is_read_as_the_workload_that_policy_sees() {
    let m = manifest(
        "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: wp}}
---
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata:
    name: web
    namespace: shop
    labels: {app: web}
    annotations: {config.linkerd.io/default-inbound-policy: deny, other: x}
  spec:
    serviceAccountName: web
    initContainers:
    - {name: once, ports: [{containerPort: 1}]}
    - {name: stays, restartPolicy: Always, ports: [{name: metrics, containerPort: 9090}]}
    containers:
    - name: web
      ports: [{name: http, containerPort: 8080}, {containerPort: 53, protocol: UDP}]
      livenessProbe: {httpGet: {path: /live?x=1, port: http}}
      readinessProbe: {httpGet: {port: 8081}}
      startupProbe: {tcpSocket: {port: 1}}
  status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
",
    );
    let pod = m.pod("shop", "web").expect("the pod");
    assert_eq!(pod.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(pod.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    let ports: Vec<_> = pod.facts.ports.iter().map(|port| (&*port.name, port.port)).collect();
    assert_eq!(ports, [("http", 8080), ("metrics", 9090)]);
    let probes: Vec<_> = pod.facts.probes.iter().map(|probe| (probe.port, &*probe.path)).collect();
    assert_eq!(probes, [(8080, "/live"), (8081, "/")]);
    assert_eq!(pod.facts.annotations.len(), 1);
    assert_eq!(pod.facts.waypoint.as_deref(), Some("shop/wp"));
    assert_eq!(m.objects.len(), 1, "the namespace");
}

#[test]
fn keys_that_are_numbers_are_texts_as_in_json() {
    let text =
        "{apiVersion: a/v1, kind: B, metadata: {name: x}, spec: {portLevelMtls: {8080: {mode: STRICT}}}}";
    let object = read(text).unwrap().remove(0).unwrap();
    assert!(object.spec["portLevelMtls"]["8080"].is_object(), "{}", object.spec);
    assert_eq!(&*object.meta.namespace, "default");
}

#[test]
fn what_is_no_object_or_no_pod_is_refused_by_name() {
    for (text, expected) in [
        ("a: 1", "document 1: this is no Kubernetes object: it has no apiVersion and kind"),
        ("{apiVersion: v1, kind: Pod}", "document 1: this is no Kubernetes object: it has no metadata.name"),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: x, labels: {a: true}}}",
            "document 1: this is no Kubernetes object: Pod x: metadata.labels: a: true is no text; quote it: a: \"true\"",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: x}, status: {podIP: y}}",
            "Pod default/x: status.podIP: \"y\" is no address",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: [{ports: [{containerPort: 70000}]}]}}",
            "Pod default/x: ports: {\"containerPort\":70000} has no containerPort from 1 to 65535",
        ),
    ] {
        let objects = read(text).unwrap().into_iter().collect::<Result<Vec<_>, _>>();
        let refused = match objects {
            Err(refused) => refused,
            Ok(objects) => Manifest::new(objects, &TrustDomain::cluster_local()).unwrap_err().remove(0),
        };
        assert_eq!(refused.to_string(), expected);
    }
}

#[test]
fn of_two_objects_of_one_name_the_later_is_there() {
    let m = manifest(
        "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/use-waypoint: old}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: old}}, status: {podIP: y}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: web, namespace: shop}, spec: {action: DENY}}
---
{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {name: web, namespace: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: dev}}
---
{apiVersion: v1, kind: List, items: [
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: new}}},
{apiVersion: security.istio.io/v1beta1, kind: AuthorizationPolicy, metadata: {name: web, namespace: shop}, spec: {action: ALLOW}},
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/use-waypoint: new}}}]}
",
    );
    // What of the first was wrong is gone with it.
    let pod = m.pod("shop", "web").expect("the pod");
    assert_eq!((m.pods.len(), &*pod.facts.labels["app"]), (2, "new"));
    assert_eq!(pod.facts.waypoint.as_deref(), Some("shop/new"));
    let kept: Vec<_> = m.objects.iter().map(|object| (&*object.group, &*object.kind)).collect();
    let policy = "AuthorizationPolicy";
    assert_eq!(
        kept,
        [("policy.linkerd.io", policy), ("security.istio.io", policy), ("", "Namespace")],
        "in the order in which they are applied"
    );
    assert_eq!(m.objects[1].spec["action"], "ALLOW");
    let replaced: Vec<_> = m.replaced.iter().map(|object| &*object.kind).collect();
    assert_eq!(replaced, ["Namespace", "Pod", policy]);
}

#[test]
fn what_kubectl_takes_is_taken() {
    let m = manifest(
        "
apiVersion: v1
kind: PodList
items:
- &pod {metadata: {name: a, namespace: shop, labels: {app: a}}, status: {podIP: ''}}
- <<: *pod
  metadata: {name: b, namespace: shop}
---
{apiVersion: v1, kind: List, items: null}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicyList, items: [{metadata: {name: p}}]}
---
{apiVersion: batch/v1, kind: Job, metadata: {generateName: once-}}
",
    );
    let pods: Vec<_> = m.pods.iter().map(|pod| (&*pod.name, pod.addresses.len())).collect();
    assert_eq!(pods, [("a", 0), ("b", 0)]);
    let others: Vec<_> = m.objects.iter().map(|object| (&*object.kind, &*object.meta.name)).collect();
    assert_eq!(others, [("AuthorizationPolicy", "p"), ("Job", "once-")]);
}

#[test]
fn an_item_that_says_nothing_of_itself_in_a_plain_list_is_refused() {
    let read = read("{apiVersion: v1, kind: List, items: [{metadata: {name: a}}]}").unwrap().remove(0);
    assert!(read.unwrap_err().to_string().starts_with("document 1, item 1: "));
}
