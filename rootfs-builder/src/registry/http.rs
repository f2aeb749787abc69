//! Requests to registries: redirects, retries, limits. What a server says is bounded before it is read.

use std::time::Duration;

use reqwest::header::{
    ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Client, Response, StatusCode, Url};

use super::options::{Endpoint, RegistryOptions};
use super::problem::{RegistryProblem, printable};
use super::tls;
use crate::error::{Error, Result};

type Answer<T> = std::result::Result<T, RegistryProblem>;

/// A redirect may lead to another, but not for ever.
const MAX_REDIRECTS: usize = 5;
/// Requests for one thing, the first included.
const MAX_TRIES: u32 = 5;
/// A rate limit that ends so soon is waited for.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Of an error's text, this much is looked at.
const MAX_ERROR_BYTES: u64 = 64 << 10;

/// An HTTP client for one registry.
#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    stall: Duration,
    allow_plain: bool,
}

/// What to ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) url: &'a Url,
    pub(super) accept: &'static str,
    /// The first byte to send, where not the whole is wanted.
    pub(super) from: u64,
    pub(super) authorization: Option<&'a HeaderValue>,
}

impl Http {
    pub(super) fn new(endpoint: &Endpoint, options: &RegistryOptions) -> Result<Self> {
        let stall = options.stall_timeout;
        let mut client = Client::builder()
            .tls_backend_preconfigured(tls::config(&endpoint.ca_files, endpoint.is_insecure)?)
            .user_agent(concat!("boxlite/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(stall.min(Duration::from_secs(15)))
            .read_timeout(stall)
            // Redirects are followed here, where it is known to whom a login belongs.
            .redirect(reqwest::redirect::Policy::none());
        if endpoint.is_local {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|error| Error::corrupt("the HTTP client", error))?;
        Ok(Self { client, stall, allow_plain: endpoint.is_insecure })
    }

    /// Sends a request again and again until there is an answer that stays, whatever it says.
    pub(super) async fn get(&self, request: Request<'_>) -> Answer<Response> {
        let mut tries = 1;
        loop {
            let problem = match self.get_once(request).await {
                Ok(response) => match temporary_refusal(&response) {
                    Some(wait) if tries < MAX_TRIES => {
                        tokio::time::sleep(wait.unwrap_or(backoff(tries))).await;
                        tries += 1;
                        continue;
                    }
                    _ => return Ok(response),
                },
                Err(problem) => problem,
            };
            if !problem.is_transient() || tries >= MAX_TRIES {
                return Err(problem);
            }
            tokio::time::sleep(backoff(tries)).await;
            tries += 1;
        }
    }

    /// Sends a request once, and follows where it leads.
    pub(super) async fn get_once(&self, request: Request<'_>) -> Answer<Response> {
        let mut url = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(request.accept));
            // A login is for the server that it was made for, and for no other.
            if let Some(value) =
                request.authorization.filter(|_| url.origin() == request.url.origin())
            {
                headers.insert(AUTHORIZATION, value.clone());
            }
            if request.from > 0
                && let Ok(range) = HeaderValue::try_from(format!("bytes={}-", request.from))
            {
                headers.insert(RANGE, range);
            }
            let sent = self.client.get(url.clone()).headers(headers).send().await;
            let response = sent.map_err(|error| RegistryProblem::of_request(&error, self.stall))?;
            match self.redirected(&url, &response)? {
                Some(next) => url = next,
                None => return Ok(response),
            }
        }
        Err(RegistryProblem::protocol(format!("it redirects more than {MAX_REDIRECTS} times")))
    }

    /// Sends a form once; a redirect is not followed, because it would take the form along.
    pub(super) async fn post(&self, url: &Url, form: String) -> Answer<Response> {
        const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
        let post = self.client.post(url.clone()).header(reqwest::header::CONTENT_TYPE, FORM);
        let sent = post.body(form).send().await;
        sent.map_err(|error| RegistryProblem::of_request(&error, self.stall))
    }

    /// Whether secrets may be sent there.
    pub(super) fn may_trust(&self, url: &Url) -> bool {
        url.scheme() == "https" || url.scheme() == "http" && self.allow_plain
    }

    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    fn redirected(&self, url: &Url, response: &Response) -> Answer<Option<Url>> {
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let next = location.and_then(|location| url.join(location).ok());
        let next = next.ok_or_else(|| RegistryProblem::protocol("it redirects to nowhere"))?;
        match next.scheme() {
            "https" => Ok(Some(next)),
            "http" if url.scheme() == "http" || self.allow_plain => Ok(Some(next)),
            other => Err(RegistryProblem::protocol(format!(
                "it redirects from a secure address to {:?}, which is none",
                printable(other)
            ))),
        }
    }
}

/// Whether to wait and ask again, and how long if the server says so.
fn temporary_refusal(response: &Response) -> Option<Option<Duration>> {
    let wait = retry_after(response);
    match response.status().as_u16() {
        429 | 503 if wait.is_some_and(|wait| wait > MAX_WAIT) => None,
        429 if wait.is_none() => None,
        408 | 429 | 500 | 502 | 503 | 504 => Some(wait),
        _ => None,
    }
}

/// How long the server asks to wait, where it says so in seconds.
pub(super) fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// How long to wait after so many tries.
pub(crate) fn backoff(tries: u32) -> Duration {
    Duration::from_millis(250) * 2u32.saturating_pow(tries.saturating_sub(1)).min(16)
}

/// The whole body of an answer, at most `limit` bytes.
pub(super) async fn body(
    mut response: Response,
    what: &str,
    limit: u64,
    stall: Duration,
) -> Answer<Vec<u8>> {
    let too_large = || RegistryProblem::TooLarge { what: what.to_owned(), limit };
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    loop {
        let chunk = response.chunk().await;
        match chunk.map_err(|error| RegistryProblem::of_request(&error, stall))? {
            None => return Ok(bytes),
            Some(chunk) if bytes.len() as u64 + chunk.len() as u64 > limit => {
                return Err(too_large());
            }
            Some(chunk) => bytes.extend_from_slice(&chunk),
        }
    }
}

/// What a registry says in place of what was asked for.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    /// The codes of the distribution specification: `MANIFEST_UNKNOWN`, …
    pub(super) codes: Vec<String>,
    /// Its words, fit to be shown.
    pub(super) message: String,
}

impl Refusal {
    /// Reads the errors of an answer. (OCI distribution specification, "Error Codes")
    pub(super) async fn read(response: Response, stall: Duration) -> Self {
        let (status, retry_after) = (response.status(), retry_after(&response));
        let body = body(response, "an error", MAX_ERROR_BYTES, stall).await.unwrap_or_default();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let errors = json.get("errors").and_then(|errors| errors.as_array());
        let field = |name: &str| -> Vec<String> {
            let fields = errors.into_iter().flatten().take(8).filter_map(|error| error.get(name));
            fields.filter_map(|field| field.as_str()).map(printable).collect()
        };
        Self { status, retry_after, codes: field("code"), message: field("message").join("; ") }
    }

    /// Whether this is among its codes.
    pub(super) fn says(&self, code: &str) -> bool {
        self.codes.iter().any(|said| said == code)
    }

    /// The refusal as a problem, where nothing better can be said.
    pub(super) fn into_problem(self) -> RegistryProblem {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => {
                RegistryProblem::RateLimited { retry_after: self.retry_after }
            }
            status => RegistryProblem::Status { status: status.as_u16(), message: self.message },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_bound() {
        let waits: Vec<_> = (1..9).map(|tries| backoff(tries).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 4000, 4000, 4000]);
        assert_eq!(backoff(u32::MAX), Duration::from_secs(4));
    }
}
