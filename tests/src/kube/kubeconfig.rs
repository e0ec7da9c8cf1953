//! The files by which programs find the API server and show who they are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::pki::Pki;
use super::places::{API_PORT, CONTROL_IP};

/// Writes `<who>.conf` for the holder of the certificate `<who>.crt`.
pub fn write(folder: &Path, pki: &Pki, who: &str) -> Result<PathBuf> {
    let path = path(folder, who);
    let text = format!("{:#}\n", content(pki, who));
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

pub fn path(folder: &Path, who: &str) -> PathBuf {
    folder.join(format!("{who}.conf"))
}

/// JSON is YAML too.
fn content(pki: &Pki, who: &str) -> Value {
    let user = json!({
        "client-certificate": pki.file(&format!("{who}.crt")),
        "client-key": pki.file(&format!("{who}.key")),
    });
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": {
            "server": format!("https://{CONTROL_IP}:{API_PORT}"),
            "certificate-authority": pki.file("ca.crt"),
        }}],
        "users": [{"name": who, "user": user}],
        "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": who}}],
        "current-context": "cluster",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_leads_its_holder_to_the_cluster() {
        let text = content(&Pki::at(Path::new("/x")), "node1");
        assert_eq!(text["current-context"], text["contexts"][0]["name"]);
        assert_eq!(text["contexts"][0]["context"]["cluster"], text["clusters"][0]["name"]);
        assert_eq!(text["contexts"][0]["context"]["user"], text["users"][0]["name"]);
        assert_eq!(text["clusters"][0]["cluster"]["server"], "https://10.210.0.1:6443");
        assert_eq!(text["clusters"][0]["cluster"]["certificate-authority"], "/x/pki/ca.crt");
        assert_eq!(text["users"][0]["user"]["client-certificate"], "/x/pki/node1.crt");
        assert_eq!(text["users"][0]["user"]["client-key"], "/x/pki/node1.key");
    }
}
