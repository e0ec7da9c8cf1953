//! Machines in a list and pods of a cluster beside each other: who shows a token is asked about in Kubernetes,
//! and anybody else in the list.

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};

use super::{Attestor, Changes, NodeName, Papers, Refusal};
use crate::model::SpiffeId;

/// Asks `pods` about those that show a token, and `machines` about the others.
#[derive(Debug)]
pub struct Both<M, P> {
    machines: M,
    pods: P,
}

impl<M: Attestor, P: Attestor> Both<M, P> {
    pub fn new(machines: M, pods: P) -> Self {
        Self { machines, pods }
    }

    async fn is_machine(&self, node: &str) -> Result<bool, Refusal> {
        Ok(self.machines.expected().await?.iter().any(|name| name == node))
    }

    async fn caller(&self, papers: &Papers) -> Result<NodeName, Refusal> {
        if papers.token.is_none() {
            return self.machines.who(papers).await;
        }
        let node = self.pods.who(papers).await?;
        // One name for two would give either what the other runs.
        if self.is_machine(node.as_str()).await? {
            let why = format!(
                "the cluster's node {node} has the name of a machine under attestation.nodes: give that one another"
            );
            return Err(Refusal::Unknown(why));
        }
        Ok(node)
    }

    async fn finds(&self, node: &NodeName, identity: &SpiffeId) -> Result<(), Refusal> {
        match self.is_machine(node.as_str()).await? {
            true => self.machines.runs(node, identity).await,
            false => self.pods.runs(node, identity).await,
        }
    }

    async fn all(&self) -> Result<Vec<String>, Refusal> {
        let mut all = self.machines.expected().await?;
        all.extend(self.pods.expected().await?);
        all.sort();
        all.dedup();
        Ok(all)
    }
}

impl<M: Attestor, P: Attestor> Attestor for Both<M, P> {
    fn who<'a>(&'a self, papers: &'a Papers) -> BoxFuture<'a, Result<NodeName, Refusal>> {
        self.caller(papers).boxed()
    }

    fn runs<'a>(&'a self, node: &'a NodeName, identity: &'a SpiffeId) -> BoxFuture<'a, Result<(), Refusal>> {
        self.finds(node, identity).boxed()
    }

    fn expected(&self) -> BoxFuture<'_, Result<Vec<String>, Refusal>> {
        self.all().boxed()
    }

    fn changes(&self) -> Changes {
        stream::select(self.machines.changes(), self.pods.changes()).boxed()
    }
}
