//! Connections to the agents of boxes: one for each box that a runtime uses, shared by all handles and commands.
//!
//! One task opens a connection, within [`CONNECT_LIMIT`], and all callers that need it wait for that task. No lock is
//! held meanwhile, and dropping a caller's future does not affect the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::Serving;
use crate::call::Channel;
use crate::client::wire::lock;
use crate::client::{self, AgentClient};
use crate::{Error, Result};

/// Timeout for an agent to accept a connection and to answer the greeting. It is generous towards slow guests.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);

/// The agents of a runtime's boxes, by box ID. An entry lives as long as a handle of the box.
#[derive(Debug, Default)]
pub(super) struct Agents(Mutex<HashMap<String, Weak<BoxAgent>>>);

/// The agent of a box, and the connection to it while there is one.
#[derive(Debug)]
pub(crate) struct BoxAgent {
    id: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Unconnected,
    Connecting(watch::Receiver<Option<Outcome>>),
    Connected(AgentClient),
}

/// The result of an attempt to connect, for all waiting callers.
type Outcome = Result<AgentClient, Failure>;

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The connection was lost before it was used.
    Lost(client::Error),
    /// The connection could not be opened.
    NotMade(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::NotMade(error)
    }
}

impl Agents {
    /// The agent of the box with this ID.
    pub(super) fn of(&self, id: &str) -> Arc<BoxAgent> {
        let mut agents = lock(&self.0);
        if let Some(agent) = agents.get(id).and_then(Weak::upgrade) {
            return agent;
        }
        agents.retain(|_, agent| agent.strong_count() > 0);
        let agent = Arc::new(BoxAgent { id: id.to_owned(), state: Mutex::default() });
        agents.insert(id.to_owned(), Arc::downgrade(&agent));
        agent
    }
}

impl BoxAgent {
    /// Returns the connection, opened if there is none. Cancel safe: other callers keep waiting.
    pub(super) async fn connect(self: &Arc<Self>, serving: &Serving) -> Outcome {
        let mut attempt = match self.connected_or_attempt(serving) {
            Ok(agent) => return Ok(agent),
            Err(attempt) => attempt,
        };
        let outcome = attempt.wait_for(Option::is_some).await.ok().and_then(|it| it.clone());
        outcome.unwrap_or_else(|| {
            // The async runtime of the connecting task was shut down.
            *lock(&self.state) = State::Unconnected;
            Err(Error::internal("connecting to an agent was aborted").into())
        })
    }

    fn connected_or_attempt(
        self: &Arc<Self>,
        serving: &Serving,
    ) -> Result<AgentClient, watch::Receiver<Option<Outcome>>> {
        let mut state = lock(&self.state);
        match &*state {
            State::Connected(agent) if !agent.is_lost() => return Ok(agent.clone()),
            State::Connecting(attempt) => return Err(attempt.clone()),
            _ => {}
        }
        let (sender, attempt) = watch::channel(None);
        *state = State::Connecting(attempt.clone());
        drop(state);
        let (this, serving) = (self.clone(), serving.clone());
        tokio::spawn(async move {
            let outcome = make(&serving, &this.id).await;
            *lock(&this.state) = match &outcome {
                Ok(agent) => State::Connected(agent.clone()),
                Err(_) => State::Unconnected,
            };
            sender.send_replace(Some(outcome));
        });
        Err(attempt)
    }
}

async fn make(serving: &Serving, id: &str) -> Outcome {
    let made = async {
        let stream = serving.open(Channel::Agent { id: id.to_owned() }).await?;
        AgentClient::connect(stream, 0).await.map_err(Failure::Lost)
    };
    match tokio::time::timeout(CONNECT_LIMIT, made).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::timed_out("an answer of the guest's agent", CONNECT_LIMIT).into()),
    }
}
