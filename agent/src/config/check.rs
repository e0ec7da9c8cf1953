//! What types cannot say about the configuration.

use std::path::Path as FilePath;
use std::time::Duration;

use super::{Certificates, Config, IssuerKind};
use crate::certs;
use crate::discovery::yaml::{Complaints, Path};

pub(super) fn check(config: &Config) -> Complaints {
    let mut check = Check::default();
    check.paths(config);
    check.instance(&config.bpf.instance);
    check.authorities(&config.certificates);
    check.times(config);
    check.numbers(config);
    check.complaints
}

#[derive(Default)]
struct Check {
    complaints: Complaints,
}

impl Check {
    fn paths(&mut self, config: &Config) {
        let (embedded, istio) = (&config.certificates.embedded, &config.certificates.istio);
        let controller = &config.certificates.controller;
        let unset = FilePath::new("/").to_path_buf();
        for (field, path) in [
            ("bpf.pinRoot", &config.bpf.pin_root),
            ("discovery.file", &config.discovery.file),
            ("certificates.embedded.rootCertificate", &embedded.root_certificate),
            ("certificates.embedded.rootKey", &embedded.root_key),
            ("certificates.controller.rootCertificate", &controller.root_certificate),
            ("certificates.controller.state", &controller.state),
            (
                "certificates.controller.clientCertificate",
                controller.client_certificate.as_ref().unwrap_or(&unset),
            ),
            ("certificates.controller.clientKey", controller.client_key.as_ref().unwrap_or(&unset)),
            ("certificates.controller.tokenFile", controller.token_file.as_ref().unwrap_or(&unset)),
            ("certificates.istio.rootCertificate", &istio.root_certificate),
            ("certificates.istio.tokenFile", &istio.token_file),
            ("certificates.spire.adminSocket", &config.certificates.spire.admin_socket),
            ("admin.socket", &config.admin.socket),
        ] {
            if path.as_os_str().is_empty() {
                self.refuse(field, "must not be empty");
            }
        }
        let trust = &config.certificates.trust;
        let bundles = trust.bundles.iter().map(|bundle| ("certificates.trust.bundles", &bundle.file));
        let lists = trust.revocation_lists.iter().map(|list| ("certificates.trust.revocationLists", list));
        for (field, path) in bundles.chain(lists) {
            if path.as_os_str().is_empty() {
                self.refuse(field, "has a file without a name");
            }
        }
        // They are compared with what the kernel reports, which is absolute.
        let cgroup = config.bpf.cgroup.iter().map(|path| ("bpf.cgroup", path));
        for (field, path) in cgroup.chain([("bpf.pinRoot", &config.bpf.pin_root)]) {
            if !FilePath::new(path).is_absolute() {
                self.refuse(field, "must be an absolute path");
            }
        }
    }

    fn instance(&mut self, instance: &str) {
        let ok = (1..=63).contains(&instance.len())
            && instance.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if !ok {
            self.refuse(
                "bpf.instance",
                "is 1 to 63 lower-case letters, digits and '-', for it names a folder",
            );
        }
    }

    fn authorities(&mut self, certificates: &Certificates) {
        let (istio, controller) = (&certificates.istio, &certificates.controller);
        let hosts = |names: &[String]| names.iter().try_for_each(|name| certs::check_host_name(name));
        let cluster = |id: &str| if id.is_empty() { Ok(()) } else { certs::check_cluster_id(id) };
        for (field, checked) in [
            ("certificates.istio.address", certs::check_address(&istio.address)),
            ("certificates.istio.alternativeHostNames", hosts(&istio.alternative_host_names)),
            ("certificates.istio.clusterId", certs::check_cluster_id(&istio.cluster_id)),
            ("certificates.istio.headers", certs::check_headers(&istio.headers)),
            ("certificates.controller.address", certs::check_address(&controller.address)),
            ("certificates.controller.alternativeHostNames", hosts(&controller.alternative_host_names)),
            ("certificates.controller.clusterId", cluster(&controller.cluster_id)),
        ] {
            if let Err(why) = checked {
                self.refuse(field, &why);
            }
        }
        if controller.client_certificate.is_some() != controller.client_key.is_some() {
            self.refuse("certificates.controller", "clientCertificate and clientKey belong together");
        }
        let proven = controller.client_certificate.is_some() || controller.token_file.is_some();
        if certificates.issuer == IssuerKind::Controller && !proven {
            self.refuse(
                "certificates.issuer",
                "controller needs certificates.controller.clientCertificate and clientKey, or tokenFile, by \
                 which the node proves itself",
            );
        }
    }

    fn times(&mut self, config: &Config) {
        let (tunnel, proxy, embedded) = (&config.tunnel, &config.proxy, &config.certificates.embedded);
        let second = Duration::from_secs(1);
        for (field, value, least) in [
            ("discovery.pollInterval", config.discovery.poll_interval, second),
            ("certificates.trust.pollInterval", config.certificates.trust.poll_interval, second),
            ("certificates.deadline", config.certificates.deadline, second),
            ("certificates.embedded.lifetime", embedded.lifetime, 60 * second),
            ("certificates.controller.lifetime", config.certificates.controller.lifetime, 60 * second),
            ("certificates.istio.lifetime", config.certificates.istio.lifetime, 60 * second),
            ("tunnel.pingInterval", tunnel.ping_interval, second),
            ("tunnel.pingTimeout", tunnel.ping_timeout, second),
            ("tunnel.connectTimeout", tunnel.connect_timeout, Duration::from_millis(1)),
            ("tunnel.answerTimeout", tunnel.answer_timeout, Duration::from_millis(1)),
            ("proxy.connectTimeout", proxy.connect_timeout, Duration::from_millis(1)),
            ("proxy.http.firstBytesTimeout", proxy.http.first_bytes_timeout, Duration::from_millis(1)),
            ("proxy.http.headTimeout", proxy.http.head_timeout, Duration::from_millis(1)),
            // The kernel counts both in whole seconds, and up to 32767.
            ("proxy.keepalive.idle", proxy.keepalive.idle, second),
            ("proxy.keepalive.interval", proxy.keepalive.interval, second),
        ] {
            if value < least {
                self.refuse(
                    field,
                    &format!("must be at least {}", crate::model::units::duration::format(least)),
                );
            }
        }
        for (field, value) in [
            ("proxy.keepalive.idle", proxy.keepalive.idle),
            ("proxy.keepalive.interval", proxy.keepalive.interval),
        ] {
            if value > Duration::from_secs(32_767) {
                self.refuse(field, "must be at most 32767s");
            }
        }
    }

    fn numbers(&mut self, config: &Config) {
        let (tunnel, http) = (&config.tunnel, &config.proxy.http);
        let most = u64::from(u32::MAX);
        for (field, value, least, most) in [
            // RFC 9113, sections 6.5.2 and 6.9.1.
            ("tunnel.streamWindow", tunnel.stream_window, 65_535, (1 << 31) - 1),
            ("tunnel.connectionWindow", tunnel.connection_window, 65_535, (1 << 31) - 1),
            ("tunnel.maxFrameSize", tunnel.max_frame_size, 1 << 14, (1 << 24) - 1),
            ("tunnel.maxHeaderListSize", tunnel.max_header_list_size, 1 << 10, most),
            ("tunnel.maxStreams", tunnel.max_streams, 1, most),
            ("tunnel.maxPeerStreams", tunnel.max_peer_streams, 1, most),
            ("certificates.concurrency", config.certificates.concurrency.into(), 1, most),
            ("proxy.workers", config.proxy.workers.into(), 0, 1024),
            // What hyper reads a head into holds a little more than the most.
            ("proxy.http.maxHeadSize", http.max_head_size, 8 << 10, 256 << 10),
            ("proxy.http.maxFields", http.max_fields.into(), 1, 10_000),
            ("proxy.http.maxStreams", http.max_streams, 1, most),
            ("proxy.http.streamWindow", http.stream_window, 65_535, (1 << 31) - 1),
            ("proxy.http.connectionWindow", http.connection_window, 65_535, (1 << 31) - 1),
            ("proxy.keepalive.probes", config.proxy.keepalive.probes.into(), 1, 127),
        ] {
            if !(least..=most).contains(&u64::from(value)) {
                self.refuse(field, &format!("must be {least} to {most}, not {value}"));
            }
        }
    }

    fn refuse(&mut self, field: &str, why: &str) {
        let path = field.split('.').fold(Path::default(), |path, key| path.key(key));
        self.complaints.add(path, why);
    }
}
