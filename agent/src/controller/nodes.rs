//! The list of nodes, which is taken anew whenever the configuration's file has another one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ca::attest::ListedNode;
use crate::config::ControllerConfig;
use crate::discovery::yaml;
use crate::sys::watch::Watch;

/// Until `stop`.
pub(super) async fn follow(
    config: ControllerConfig,
    file: PathBuf,
    list: watch::Sender<Vec<ListedNode>>,
    stop: CancellationToken,
) {
    let mut watch = Watch::new(&file);
    let mut refused = None;
    loop {
        let _ = watch.ensure();
        match take(&file, &list) {
            Ok(new) => {
                refused = None;
                if let Some(new) = new {
                    tracing::info!(nodes = new.attestation.nodes.len(), "the list of nodes was replaced");
                    let rest = ControllerConfig { attestation: config.attestation.clone(), ..new };
                    if rest != config {
                        tracing::warn!(
                            "of the configuration only the list of nodes is taken without a restart"
                        );
                    }
                }
            }
            Err(why) => {
                if refused.as_ref() != Some(&why) {
                    tracing::warn!("the list of nodes stays as it was: {why}");
                    refused = Some(why);
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = watch.changed() => watch.settle(Duration::from_millis(100)).await,
            () = tokio::time::sleep(Duration::from_secs(30)) => {}
        }
    }
}

/// The file's configuration, if its list is another one, which is in place then.
///
/// # Errors
/// Why the list stays as it was.
fn take(file: &Path, list: &watch::Sender<Vec<ListedNode>>) -> Result<Option<ControllerConfig>, String> {
    let new = ControllerConfig::read(file).map_err(|e| e.to_string())?;
    let nodes = new.nodes();
    // A file that is being written is whole YAML more often than not, and may well be empty.
    if nodes.is_empty() && !list.borrow().is_empty() && !says_that_there_are_none(file) {
        return Err(format!(
            "{} lists no nodes any more; if that is meant, it has to say `nodes: []` under attestation",
            file.display()
        ));
    }
    let changed = list.send_if_modified(|held| {
        let differs = *held != nodes;
        *held = nodes;
        differs
    });
    Ok(changed.then_some(new))
}

fn says_that_there_are_none(file: &Path) -> bool {
    #[derive(Deserialize)]
    struct Document {
        attestation: Option<Attestation>,
    }
    #[derive(Deserialize)]
    struct Attestation {
        nodes: Option<Vec<IgnoredAny>>,
    }
    let document = std::fs::read_to_string(file).ok().and_then(|text| yaml::read::<Document>(&text).ok());
    document.and_then(|document| document.attestation?.nodes).is_some_and(|nodes| nodes.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const NODE: &str = "attestation:\n  nodes:\n  - name: n1\n    key: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n    identities: [spiffe://cluster.local/ns/shop/sa/cart]\n";

    struct File(PathBuf);

    impl File {
        fn new() -> Self {
            let name = format!("underpass-nodes-{}-{:016x}", std::process::id(), rand::random::<u64>());
            let folder = std::env::temp_dir().join(name);
            std::fs::create_dir(&folder).unwrap();
            Self(folder.join("controller.yaml"))
        }

        fn write(&self, text: &str) {
            std::fs::write(&self.0, text).unwrap();
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            std::fs::remove_dir_all(self.0.parent().unwrap()).ok();
        }
    }

    /// Every beginning of a file, as somebody may find it who reads while it is written.
    #[test]
    fn a_half_written_file_takes_no_node_out() {
        let (file, text) =
            (File::new(), format!("trustDomain: cluster.local\n{NODE}admin: {{address: null}}\n"));
        file.write(&text);
        let (list, _held) = watch::channel(ControllerConfig::read(&file.0).unwrap().nodes());
        for end in 0..text.len() {
            file.write(&text[..end]);
            let said = take(&file.0, &list);
            assert_eq!(list.borrow().len(), 1, "{:?} gave {said:?}", &text[..end]);
            if end < text.find("- name").unwrap() {
                said.unwrap_err();
            }
        }
        std::fs::remove_file(&file.0).unwrap();
        assert!(take(&file.0, &list).unwrap_err().contains("controller.yaml"));
        assert_eq!(list.borrow().len(), 1);
    }

    #[test]
    fn a_list_that_is_meant_to_be_empty_is() {
        for none in ["attestation: {nodes: []}", "attestation:\n  nodes: []\n"] {
            let file = File::new();
            file.write(NODE);
            let (list, _held) = watch::channel(ControllerConfig::read(&file.0).unwrap().nodes());
            assert!(take(&file.0, &list).unwrap().is_none(), "nothing has changed");
            for unsaid in ["", "# gone\n", "attestation: {}\n", "attestation:\n  nodes:\n", "attestation:\n"]
            {
                file.write(unsaid);
                take(&file.0, &list).unwrap_err();
            }
            file.write(none);
            assert!(take(&file.0, &list).unwrap().is_some());
            assert!(list.borrow().is_empty());
            file.write("");
            assert!(take(&file.0, &list).unwrap().is_none(), "there was nobody before either");
            file.write(NODE);
            assert!(take(&file.0, &list).unwrap().is_some());
            assert_eq!(list.borrow().len(), 1);
        }
    }
}
