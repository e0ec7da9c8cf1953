use super::*;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/agent.yaml");

#[test]
fn the_example_is_what_the_types_say() {
    let expected = example();
    if std::env::var_os("UPDATE_EXAMPLES").is_some() {
        std::fs::write(EXAMPLE, &expected).unwrap();
    }
    let written = std::fs::read_to_string(EXAMPLE).unwrap_or_default();
    assert_eq!(
        written, expected,
        "deploy/examples/agent.yaml differs from the types; run: UPDATE_EXAMPLES=1 cargo test -p underpass-agent --lib config::"
    );
}

#[test]
fn the_example_reads_back_as_the_defaults() {
    assert_eq!(Config::parse(&example(), &Environment::default()), Ok(Config::default()));
}

#[test]
fn every_field_is_explained() {
    let text = example();
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let is_field = !line.trim_start().starts_with('#') && line.contains(':');
        assert!(!is_field || lines[at - 1].trim_start().starts_with("# "), "no comment above: {line}");
    }
}

#[test]
fn fields_may_be_left_out() {
    let config = Config::parse("tunnel: {pingInterval: 1m30s, streamWindow: 1MiB}", &Environment::default());
    let mut expected = Config::default();
    expected.tunnel.ping_interval = std::time::Duration::from_secs(90);
    expected.tunnel.stream_window = 1 << 20;
    assert_eq!(config, Ok(expected));
}

#[test]
fn the_file_wins_over_the_environment() {
    let injected = Environment { node_name: Some("from-env".into()), ..Environment::default() };
    for (text, environment, expected) in [
        ("{}", &injected, "from-env"),
        ("node: {name: from-file}", &injected, "from-file"),
        ("node: {name: from-file}", &Environment::default(), "from-file"),
        ("{}", &Environment::default(), ""),
    ] {
        assert_eq!(Config::parse(text, environment).unwrap().node.name, expected, "{text}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (text, expected) in [
        ("nodes: {}", "1:1: nodes: unknown field `nodes`"),
        ("tunnel:\n  pingInterval: 30\n", "2:17: tunnel.pingInterval: a duration is written like"),
        ("tunnel:\n  streamWindow: 4MB\n", "2:17: tunnel.streamWindow: a size is written like"),
        ("tunnel:\n  streamWindow: 1\n", "2:17: tunnel.streamWindow: must be 65535 to 2147483647, not 1"),
        (
            "tunnel:\n  maxFrameSize: 16MiB\n",
            "2:17: tunnel.maxFrameSize: must be 16384 to 16777215, not 16777216",
        ),
        ("tunnel: {maxStreams: 0}", "1:22: tunnel.maxStreams: must be 1 to"),
        ("tunnel: {maxStreams: -1}", "1:22: tunnel.maxStreams: "),
        ("capture: {mode: iptables}", "1:17: capture.mode: unknown variant `iptables`"),
        ("bpf: {instance: ../other}", "1:17: bpf.instance: is 1 to 63 lower-case letters"),
        ("bpf: {instance: ''}", "1:17: bpf.instance: is 1 to 63 lower-case letters"),
        ("bpf: {pinRoot: pins}", "1:16: bpf.pinRoot: must be an absolute path"),
        ("admin: {socket: ''}", "1:17: admin.socket: must not be empty"),
        ("admin: {healthAddress: 15021}", "1:24: admin.healthAddress: "),
        ("proxy: {keepalive: {idle: 500ms}}", "1:27: proxy.keepalive.idle: must be at least 1s"),
        ("proxy: {http: {headTimeout: 0s}}", "1:29: proxy.http.headTimeout: must be at least 1ms"),
        (
            "proxy: {http: {maxHeadSize: 1KiB}}",
            "1:29: proxy.http.maxHeadSize: must be 8192 to 262144, not 1024",
        ),
        ("proxy: {http: {maxHeadSize: 1MiB}}", "1:29: proxy.http.maxHeadSize: must be 8192 to 262144"),
        ("proxy: {http: {maxFields: 0}}", "1:27: proxy.http.maxFields: must be 1 to 10000, not 0"),
        ("proxy: {http: {maxStreams: 0}}", "1:28: proxy.http.maxStreams: must be 1 to"),
        ("proxy: {http: {streamWindow: 1KiB}}", "1:30: proxy.http.streamWindow: must be 65535 to"),
        ("proxy: {http: {idleTimeout: 5}}", "1:29: proxy.http.idleTimeout: a duration is written like"),
        (
            "certificates:\n  embedded: {lifetime: 10s}",
            "2:24: certificates.embedded.lifetime: must be at least 1m",
        ),
        ("certificates: {issuer: istiod}", "1:24: certificates.issuer: unknown variant `istiod`"),
        (
            "certificates: {istio: {address: istiod:15012}}",
            "1:33: certificates.istio.address: must be written like https://",
        ),
        (
            "certificates: {istio: {address: 'http://istiod:15012'}}",
            "1:33: certificates.istio.address: must be written",
        ),
        (
            "certificates: {istio: {address: 'https://istiod:15012/ca'}}",
            "1:33: certificates.istio.address: must be written",
        ),
        (
            "certificates: {istio: {alternativeHostNames: ['']}}",
            "1:46: certificates.istio.alternativeHostNames: must be a DNS name",
        ),
        (
            "certificates: {controller: {alternativeHostNames: [ca.test, 'a b']}}",
            "1:51: certificates.controller.alternativeHostNames: must be a DNS name",
        ),
        (
            "certificates: {istio: {alternativeHostName: ca.test}}",
            "1:24: certificates.istio.alternativeHostName: unknown field",
        ),
        (
            "certificates: {istio: {clusterId: ''}}",
            "1:35: certificates.istio.clusterId: must be a cluster's name",
        ),
        ("certificates: {istio: {tokenFile: ''}}", "1:35: certificates.istio.tokenFile: must not be empty"),
        (
            "certificates: {istio: {rootCertificate: ''}}",
            "1:41: certificates.istio.rootCertificate: must not be empty",
        ),
        ("certificates: {istio: {lifetime: 10s}}", "1:34: certificates.istio.lifetime: must be at least 1m"),
        ("certificates: {istio: {trustDomain: UPPER}}", "1:37: certificates.istio.trustDomain: "),
        (
            "certificates: {spire: {adminSocket: ''}}",
            "1:37: certificates.spire.adminSocket: must not be empty",
        ),
        (
            "certificates: {istio: {headers: {clusterid: x}}}",
            "1:33: certificates.istio.headers: \"clusterid\"",
        ),
        (
            "certificates: {istio: {headers: {x: 'a\u{e9}'}}}",
            "1:33: certificates.istio.headers: \"x\" must be",
        ),
        (
            "certificates: {issuer: controller}",
            "1:24: certificates.issuer: controller needs certificates.controller.clientCertificate",
        ),
        (
            "certificates: {controller: {clientKey: /k}}",
            "1:28: certificates.controller: clientCertificate and clientKey belong together",
        ),
        (
            "certificates: {controller: {address: 'http://c:15012'}}",
            "1:38: certificates.controller.address: must be written",
        ),
        ("certificates: {controller: {state: ''}}", "1:36: certificates.controller.state: must not be empty"),
        (
            "certificates: {controller: {tokenFile: ''}}",
            "1:40: certificates.controller.tokenFile: must not be empty",
        ),
    ] {
        let invalid = Config::parse(text, &Environment::default()).unwrap_err();
        assert!(invalid.to_string().starts_with(expected), "{text:?} gave {invalid}");
    }
}

#[test]
fn errors_name_the_file() {
    let missing = Config::read(Path::new("/nonexistent/agent.yaml"), &Environment::default()).unwrap_err();
    assert!(
        missing.to_string().starts_with("cannot read the configuration /nonexistent/agent.yaml: "),
        "{missing}"
    );

    let dir = std::env::temp_dir().join(format!("underpass-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("agent.yaml");
    std::fs::write(&path, "node: {}\nfoo: 1\n").unwrap();
    let refused = Config::read(&path, &Environment::default()).unwrap_err().to_string();
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(refused.contains(&format!("{}:2:1: foo: unknown field", path.display())), "{refused}");
}
