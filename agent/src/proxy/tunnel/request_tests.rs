use std::collections::HashSet;

use proptest::prelude::*;

use super::super::BaggageFields;
use super::*;

fn request(uri: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri.parse().unwrap();
    request
}

#[test]
fn targets_that_are_taken() {
    for (text, written) in [
        ("10.1.2.3:80", "10.1.2.3:80"),
        ("10.1.2.3:65535", "10.1.2.3:65535"),
        ("[fd00::1]:443", "[fd00::1]:443"),
        ("[FD00:0:0::0001]:443", "[fd00::1]:443"),
        ("[::ffff:10.1.2.3]:80", "10.1.2.3:80"),
        ("reviews.default.svc.cluster.local:9080", "reviews.default.svc.cluster.local:9080"),
        ("Reviews.Default:1", "reviews.default:1"),
        ("with_underscore.ns:1", "with_underscore.ns:1"),
        ("1st.example.com:1", "1st.example.com:1"),
    ] {
        let connect = parse_request(&request(text)).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(connect.target.to_string(), written);
    }
}

#[test]
fn targets_that_are_refused() {
    for text in [
        "10.1.2.3",
        "10.1.2.3:",
        "10.1.2.3:0",
        "10.1.2.3:080",
        "10.1.2.3:+80",
        "10.1.2.3:65536",
        "10.1.2.3:80 ",
        " 10.1.2.3:80",
        "10.1.2.3:80:90",
        "fd00::1:80",
        "[fd00::1]",
        "[fd00::1]80",
        "[fd00::1%eth0]:80",
        "[10.1.2.3]:80",
        "[[fd00::1]]:80",
        // What resolvers and inet_aton take for addresses.
        "127.1:80",
        "2130706433:80",
        "0x7f000001:80",
        "0x7f.1:80",
        "010.1.2.3:80",
        "10.1.2.3.:80",
        "user@10.1.2.3:80",
        "a%2eb:80",
        "-a.example:80",
        "a-.example:80",
        "a..example:80",
        ".example:80",
        "example.:80",
        "*:80",
        ":80",
        ":",
        "",
        "localhost\u{0}:80",
        "ünïcode.example:80",
    ] {
        assert_eq!(text.parse::<Target>(), Err(Reject::Authority), "{text:?}");
    }
    let long = format!("{}:80", vec!["abcdefghi"; 26].join("."));
    assert_eq!(long.parse::<Target>(), Err(Reject::Authority));
}

#[test]
fn only_a_plain_connect_is_taken() {
    let mut get = request("10.1.2.3:80");
    *get.method_mut() = Method::GET;
    let mut lower = request("10.1.2.3:80");
    *lower.method_mut() = Method::from_bytes(b"connect").unwrap();
    let mut extended = request("10.1.2.3:80");
    extended.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    for (request, why) in [
        (get, Reject::Method),
        (lower, Reject::Method),
        (extended, Reject::NotPlainConnect),
        (request("http://10.1.2.3:80/"), Reject::NotPlainConnect),
        (request("http://10.1.2.3:80/x?y"), Reject::NotPlainConnect),
        (request("/"), Reject::Authority),
        (request("user:pw@10.1.2.3:80"), Reject::Authority),
    ] {
        assert_eq!(parse_request(&request), Err(why), "{request:?}");
        assert_eq!(why.status(), StatusCode::BAD_REQUEST);
    }
}

/// As ztunnel sends them; and headers that contradict each other, or are no such thing, are absent.
#[test]
fn headers_inform_or_are_ignored() {
    let mut r = request("10.1.2.3:80");
    let h = r.headers_mut();
    let baggage = "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=sleep,\
                   service.name=sleep,service.version=v1,cloud.region=r1,cloud.availability_zone=z1";
    h.insert("baggage", HeaderValue::from_static(baggage));
    h.insert("forwarded", HeaderValue::from_static(r#"for="[fd00::7]:4711";host=web.ns.svc"#));
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    h.insert("traceparent", HeaderValue::from_static(trace));
    h.insert("x-forwarded-network", HeaderValue::from_static("net-2"));
    let connect = parse_request(&r).unwrap();
    let expected = BaggageFields {
        cluster: "Kubernetes",
        namespace: "default",
        workload_type: "deployment",
        workload: "sleep",
        service: "sleep",
        revision: "v1",
        region: "r1",
        zone: "z1",
    };
    assert_eq!(connect.baggage.as_ref().unwrap().fields(), expected);
    assert_eq!(Baggage::new(&expected).header(), baggage);
    let forwarded = connect.forwarded.unwrap();
    assert_eq!(forwarded.client, "[fd00::7]:4711".parse().unwrap());
    assert_eq!(forwarded.host.as_deref(), Some("web.ns.svc"));
    assert_eq!(connect.trace.unwrap().trace_id(), 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
    assert_eq!(connect.network.as_deref(), Some("net-2"));

    for (name, bad) in [
        ("forwarded", "for=unknown"),
        ("forwarded", "by=\"10.0.0.1:1\""),
        ("traceparent", "00-00000000000000000000000000000000-b7ad6b7169203331-01"),
        ("traceparent", "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x"),
        ("x-forwarded-network", "two words"),
    ] {
        let mut r = request("10.1.2.3:80");
        r.headers_mut().insert(name, HeaderValue::from_static(bad));
        let connect = parse_request(&r).unwrap();
        assert_eq!(connect, Connect::to("10.1.2.3:80".parse().unwrap()), "{name}: {bad}");
    }

    let mut r = request("10.1.2.3:80");
    r.headers_mut().append("x-forwarded-network", HeaderValue::from_static("a"));
    r.headers_mut().append("x-forwarded-network", HeaderValue::from_static("b"));
    assert_eq!(parse_request(&r).unwrap().network, None);
}

#[test]
fn baggage_keeps_only_what_it_can_say() {
    let fields = BaggageFields {
        namespace: "a,b=c",
        workload_type: "replicaset",
        workload: "x",
        service: "ok",
        ..BaggageFields::default()
    };
    assert_eq!(Baggage::new(&fields).header(), "service.name=ok");
    let read = |text: &'static str| {
        Baggage::from_header(HeaderValue::from_static(text)).map(|b| {
            let f = b.fields();
            format!("{} {} {}", f.service, f.workload_type, f.workload)
        })
    };
    assert_eq!(read("service.name=a,service.name=b").unwrap(), "a  ");
    assert_eq!(read(" service.name = a ;p=1, k8s.job.name=j,k8s.pod.name=p").unwrap(), "a job j");
    assert_eq!(read("service.name,=x,other=y,service.name=\"q\"").unwrap(), "  ");
    let long = "x".repeat(10_000);
    assert_eq!(Baggage::from_header(HeaderValue::from_str(&long).unwrap()), None);
}

#[test]
fn traceparents_differ() {
    let mut rng = rand::rng();
    let all: HashSet<u128> = (0..1000).map(|_| TraceParent::random(&mut rng).trace_id()).collect();
    assert_eq!(all.len(), 1000);
}

fn target() -> impl Strategy<Value = Target> {
    let address = (any::<IpAddr>(), 1u16..)
        .prop_map(|(ip, port)| Target::Address(SocketAddr::new(ip.to_canonical(), port)));
    let host = ("[a-z0-9][a-z0-9_]{0,20}(\\.[a-z]([a-z0-9-]{0,10}[a-z0-9])?){0,4}\\.[a-z]{1,5}", 1u16..)
        .prop_map(|(host, port)| Target::Host(host.into(), port));
    prop_oneof![address, host]
}

fn connect() -> impl Strategy<Value = Connect> {
    let value = "[!#-+--:<>-\\[\\]-~]{1,60}";
    let baggage = (value, value, value).prop_map(|(namespace, workload, service)| {
        Baggage::new(&BaggageFields {
            namespace: &namespace,
            workload_type: "job",
            workload: &workload,
            service: &service,
            ..BaggageFields::default()
        })
    });
    let forwarded = (any::<IpAddr>(), any::<u16>(), proptest::option::of("[a-z]{1,9}\\.svc")).prop_map(
        |(ip, port, host)| Forwarded {
            client: SocketAddr::new(ip.to_canonical(), port),
            host: host.map(Into::into),
        },
    );
    let trace = any::<u64>().prop_map(|seed| {
        use rand::SeedableRng;
        TraceParent::random(&mut rand::rngs::StdRng::seed_from_u64(seed))
    });
    use proptest::option::of;
    (target(), of(baggage), of(forwarded), of(trace), of("[!-~]{1,80}")).prop_map(
        |(target, baggage, forwarded, trace, network)| Connect {
            target,
            baggage,
            forwarded,
            trace,
            network: network.map(Into::into),
        },
    )
}

proptest! {
    #[test]
    fn what_is_encoded_is_parsed(connect in connect()) {
        prop_assert_eq!(parse_request(&connect.encode().unwrap()), Ok(connect));
    }

    #[test]
    fn any_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz_request(&data);
    }

    #[test]
    fn likely_bytes_are_survived(
        authority in "[0-9a-fx.:\\[\\]@%-]{0,40}",
        headers in "(for=|host=|\"|;|,|[a-z0-9.=:-]|00-|\\n|service.name=|k8s.pod.name=){0,60}",
    ) {
        fuzz_request(format!("{authority}\n{headers}").as_bytes());
        let _ = authority.parse::<Target>();
        let _ = headers.parse::<Forwarded>();
        let _ = headers.parse::<TraceParent>();
    }
}
