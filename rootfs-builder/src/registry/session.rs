//! A session with one registry about one repository: manifests and blobs.
//!
//! (OCI distribution specification 1.1, "Pull")

use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use tokio::sync::Mutex;

use super::auth::{self, Challenge};
use super::credentials::Login;
use super::http::{Http, Refusal, Request, body};
use super::options::{Endpoint, RegistryOptions};
use super::problem::{host_and_port, of_request, printable};
use crate::error::{Error, RegistryProblem, Result};
use crate::format::{Digest, MAX_MANIFEST_BYTES};

type Answer<T> = std::result::Result<T, RegistryProblem>;

/// Accepted media types of manifests: indexes and manifests, OCI's and Docker's.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/json;q=0.5, */*;q=0.1";
const ANYTHING: &str = "*/*";

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    http: Http,
    /// URL that the repositories are below.
    base: Url,
    registry: String,
    repository: String,
    login: Option<Login>,
    /// The host that a login is not sent to, because it is reached without TLS.
    withheld: Option<String>,
    authorization: Mutex<Authorization>,
}

/// The `Authorization` header of all requests, and how often it has changed.
#[derive(Clone, Debug, Default)]
struct Authorization {
    value: Option<HeaderValue>,
    generation: u64,
}

/// A manifest or index as the registry sent it.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) bytes: Vec<u8>,
    pub(crate) media_type: String,
    /// The digest in the response's header.
    pub(crate) digest: Option<Digest>,
}

/// The content of a blob, as it arrives.
#[derive(Debug)]
pub(crate) struct BlobStream {
    response: Response,
    stall: Duration,
    /// Offset of the first byte: the requested one, or 0.
    pub(crate) start: u64,
}

impl BlobStream {
    /// The next chunk; none at the end.
    pub(crate) async fn chunk(&mut self) -> Answer<Option<impl AsRef<[u8]> + use<>>> {
        let chunk = self.response.chunk().await;
        chunk.map_err(|error| of_request(&error, self.stall))
    }
}

impl Session {
    /// Creates a session; nothing is sent yet. The repository is empty for logins.
    pub(super) fn new(
        endpoint: &Endpoint,
        base: &str,
        repository: &str,
        login: Option<Login>,
        options: &RegistryOptions,
    ) -> Result<Self> {
        let base = Url::parse(base).map_err(|error| Error::RegistryConfig {
            file: "registries.json".into(),
            reason: format!("{base}: {error}"),
        })?;
        let http = Http::new(endpoint, options)?;
        let may_be_sent = http.may_trust(&base);
        let withheld = (login.is_some() && !may_be_sent).then(|| host_and_port(&base));
        let login = login.filter(|_| may_be_sent);
        Ok(Self {
            http,
            base,
            registry: endpoint.registry.clone(),
            repository: match repository {
                "" => String::new(),
                repository => format!("{}{repository}", endpoint.prefix),
            },
            login,
            withheld,
            authorization: Mutex::default(),
        })
    }

    /// Requests the API's root: whether a registry is there, and which login it wants. No retries:
    /// a wrong name is reported at once.
    pub(crate) async fn check_api(&self) -> Answer<()> {
        let authorization = self.authorization.lock().await.value.clone();
        let authorization = authorization.as_ref();
        let request = Request { url: &self.base, accept: ANYTHING, from: 0, authorization };
        let response = self.http.get_once(request).await?;
        match response.status() {
            StatusCode::UNAUTHORIZED => self.authenticate(response.headers(), 0).await.map(drop),
            // Some registries lack or limit this page: the manifest request decides.
            _ => Ok(()),
        }
    }

    /// Checks that the login is accepted.
    pub(super) async fn check_login(&self) -> Answer<()> {
        self.check_api().await?;
        let response = self.send(self.base.clone(), ANYTHING, 0).await?;
        match response.status() {
            status if status.is_success() => Ok(()),
            StatusCode::NOT_FOUND => {
                Err(RegistryProblem::protocol("it has no page /v2/, as registries do"))
            }
            _ => Err(self.refused(Refusal::read(response, self.http.stall()).await)),
        }
    }

    /// A manifest or index, by tag or digest; not verified yet.
    pub(crate) async fn manifest(&self, reference: &str) -> Answer<Document> {
        let response = self.send(self.url(&["manifests", reference])?, MANIFESTS, 0).await?;
        if response.status() != StatusCode::OK {
            let refusal = Refusal::read(response, self.http.stall()).await;
            return Err(match refusal.status {
                StatusCode::NOT_FOUND => self.unknown(reference, &refusal).await,
                _ => self.refused(refusal),
            });
        }
        let header = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.map(printable).unwrap_or_default()
        };
        let media_type = header(CONTENT_TYPE.as_str());
        let digest = header("docker-content-digest").parse().ok();
        if media_type.starts_with("text/html") {
            return Err(RegistryProblem::protocol("it answers with a web page"));
        }
        let what = format!("the manifest {reference}");
        let bytes = body(response, &what, MAX_MANIFEST_BYTES, self.http.stall()).await?;
        Ok(Document { bytes, media_type, digest })
    }

    /// The content of a blob: from byte `from` if the registry supports that, else from 0.
    pub(crate) async fn blob(&self, what: &str, digest: &Digest, from: u64) -> Answer<BlobStream> {
        let url = self.url(&["blobs", &digest.to_string()])?;
        let mut response = self.send(url.clone(), ANYTHING, from).await?;
        let is_elsewhere = response.status() == StatusCode::PARTIAL_CONTENT
            && !starts_at(&response, from)
            || response.status() == StatusCode::RANGE_NOT_SATISFIABLE;
        if from > 0 && is_elsewhere {
            response = self.send(url, ANYTHING, 0).await?;
        }
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if starts_at(&response, from) => from,
            StatusCode::PARTIAL_CONTENT => {
                return Err(RegistryProblem::protocol("it sends another part than was asked for"));
            }
            StatusCode::NOT_FOUND => {
                return Err(RegistryProblem::LostBlob { what: what.to_owned() });
            }
            _ => return Err(self.refused(Refusal::read(response, self.http.stall()).await)),
        };
        Ok(BlobStream { response, stall: self.http.stall(), start })
    }

    /// A whole small blob; not verified yet.
    pub(crate) async fn small_blob(
        &self,
        what: &str,
        digest: &Digest,
        limit: u64,
    ) -> Answer<Vec<u8>> {
        let blob = self.blob(what, digest, 0).await?;
        body(blob.response, what, limit, self.http.stall()).await
    }

    /// Name of the registry.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    /// Sends a request; after a 401, authenticates and sends it once more.
    async fn send(&self, url: Url, accept: &'static str, from: u64) -> Answer<Response> {
        let mut seen = self.authorization.lock().await.clone();
        let mut retried = false;
        loop {
            let authorization = seen.value.as_ref();
            let response =
                self.http.get(Request { url: &url, accept, from, authorization }).await?;
            if response.status() != StatusCode::UNAUTHORIZED || retried {
                return Ok(response);
            }
            match self.authenticate(response.headers(), seen.generation).await? {
                Some(new) => seen = new,
                None => return Ok(response),
            }
            retried = true;
        }
    }

    /// Answers the challenge of a response, unless another request has done so since `seen`; none
    /// if there is nothing new to send.
    async fn authenticate(&self, headers: &HeaderMap, seen: u64) -> Answer<Option<Authorization>> {
        let mut authorization = self.authorization.lock().await;
        if authorization.generation != seen {
            return Ok(Some(authorization.clone()));
        }
        let Some(challenge) = Challenge::of(headers) else { return Ok(None) };
        let scope = format!("repository:{}:pull", self.repository);
        let scope = (!self.repository.is_empty()).then_some(scope.as_str());
        let login = self.login.as_ref();
        let value = auth::answer(&self.http, &challenge, &self.registry, scope, login).await;
        let value = value.map_err(|problem| match problem {
            RegistryProblem::LoginNeeded { .. } => self.login_needed(),
            other => other,
        })?;
        // The same basic login would be refused again.
        if value.is_none() || value == authorization.value {
            return Ok(None);
        }
        *authorization = Authorization { value, generation: seen.saturating_add(1) };
        Ok(Some(authorization.clone()))
    }

    /// The problem of a missing manifest: no repository, or no such tag among these.
    async fn unknown(&self, reference: &str, refusal: &Refusal) -> RegistryProblem {
        let repository = self.repository.clone();
        let tags = match refusal.has_code("NAME_UNKNOWN") {
            true => None,
            false => self.some_tags().await,
        };
        let Some(tags) = tags else { return RegistryProblem::UnknownRepository { repository } };
        let (reference, tags) = match reference.parse::<Digest>() {
            Ok(digest) => (format!("image {digest}"), Vec::new()),
            Err(_) => (format!("tag {reference:?}"), tags),
        };
        RegistryProblem::UnknownReference { repository, reference, tags }
    }

    /// Some existing tags, for a message; none if there is no such repository.
    async fn some_tags(&self) -> Option<Vec<String>> {
        const MAX_BYTES: u64 = 256 << 10;
        let ask = async {
            let mut url = self.url(&["tags", "list"])?;
            url.set_query(Some("n=20"));
            self.send(url, "application/json", 0).await
        };
        let Ok(response) = ask.await else { return Some(Vec::new()) };
        if response.status() == StatusCode::NOT_FOUND {
            let refusal = Refusal::read(response, self.http.stall()).await;
            return (!refusal.has_code("NAME_UNKNOWN")).then(Vec::new);
        }
        let body = body(response, "the tags", MAX_BYTES, self.http.stall()).await;
        let json: serde_json::Value =
            serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
        let tags = json.get("tags").and_then(|tags| tags.as_array()).into_iter().flatten();
        Some(tags.filter_map(|tag| tag.as_str()).map(printable).take(1000).collect())
    }

    fn refused(&self, refusal: Refusal) -> RegistryProblem {
        match (refusal.status, &self.login) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, None) => self.login_needed(),
            (StatusCode::UNAUTHORIZED, Some(login))
                if refusal.codes.is_empty() || self.is_basic() =>
            {
                auth::login_refused(&self.registry, login)
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(login)) => {
                let user = login.credentials.user().to_owned();
                RegistryProblem::Forbidden { user, message: refusal.message }
            }
            _ => refusal.into_problem(),
        }
    }

    fn login_needed(&self) -> RegistryProblem {
        match &self.withheld {
            Some(host) => RegistryProblem::Unencrypted { host: host.clone() },
            None => RegistryProblem::LoginNeeded { registry: self.registry.clone() },
        }
    }

    /// Whether the login itself is sent, not a token.
    fn is_basic(&self) -> bool {
        let authorization = self.authorization.try_lock();
        authorization.is_ok_and(|authorization| {
            let value = authorization.value.as_ref();
            value.is_some_and(|value| value.as_bytes().starts_with(b"Basic "))
        })
    }

    fn url(&self, parts: &[&str]) -> Answer<Url> {
        let path = format!("{}/{}", self.repository, parts.join("/"));
        self.base.join(&path).map_err(|error| RegistryProblem::protocol(error.to_string()))
    }
}

/// Whether a partial response begins with this byte: `Content-Range: bytes 5-9/10`. (RFC 9110,
/// 14.4)
fn starts_at(response: &Response, from: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
    start.is_some_and(|start| start.parse() == Ok(from))
}
