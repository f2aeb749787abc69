//! HTTP requests: redirects, retries, limits. Every response is bounded before it is read.
//!
//! Retries are a loop of our own, not the backon crate's: a response that is no error may ask for
//! one, with a delay, and the count starts over when a download makes progress. The loop is shorter than closures
//! for all that.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};

use super::options::{Endpoint, RegistryOptions, Trust};
use super::problem::{at_host, of_request, printable};
use super::tls;
use crate::error::{Error, RegistryProblem, Result};

type Answer<T> = std::result::Result<T, RegistryProblem>;

/// Maximum number of redirects of a request.
const MAX_REDIRECTS: usize = 5;
/// Maximum number of attempts, the first included.
const MAX_TRIES: u32 = 5;
/// Longest rate limit that is waited for.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Maximum number of bytes read of an error response.
const MAX_ERROR_BYTES: u64 = 64 << 10;

/// HTTP client for one registry and the hosts that it redirects to.
#[derive(Debug)]
pub(super) struct Http {
    endpoint: Endpoint,
    options: RegistryOptions,
    /// One client for each kind of trust: they share no connections.
    clients: Mutex<HashMap<Trust, Client>>,
}

/// A GET request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) url: &'a Url,
    pub(super) accept: &'static str,
    /// First byte to send: 0 for the whole content.
    pub(super) from: u64,
    pub(super) authorization: Option<&'a HeaderValue>,
}

impl Http {
    pub(super) fn new(endpoint: &Endpoint, options: &RegistryOptions) -> Result<Self> {
        let http = Self {
            endpoint: endpoint.clone(),
            options: options.clone(),
            clients: Mutex::default(),
        };
        for base in endpoint.bases.iter().filter_map(|base| Url::parse(base).ok()) {
            // Report unusable certificates before the first request.
            http.client(&base)?;
        }
        Ok(http)
    }

    /// The client for the URL's host.
    fn client(&self, url: &Url) -> Result<Client> {
        let trust = self.options.trust(&self.endpoint, url);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&trust) {
            return Ok(client.clone());
        }
        let mut client = Client::builder()
            .tls_backend_preconfigured(tls::config(&trust.ca_files, trust.is_insecure)?)
            .user_agent(concat!("boxlite/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.stall().min(Duration::from_secs(15)))
            .read_timeout(self.stall())
            // Redirects are followed by `get_once`, which knows whom a login belongs to.
            .redirect(reqwest::redirect::Policy::none());
        if trust.is_local {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|error| Error::corrupt("the HTTP client", error))?;
        clients.insert(trust, client.clone());
        Ok(client)
    }

    /// Sends one request.
    async fn send(
        &self,
        url: &Url,
        request: impl FnOnce(Client) -> RequestBuilder,
    ) -> Answer<Response> {
        let client =
            self.client(url).map_err(|error| RegistryProblem::protocol(error.to_string()))?;
        let sent = request(client).send().await;
        sent.map_err(|error| {
            let problem = of_request(&error, self.stall());
            match self.endpoint.is_at(url) {
                true => problem,
                false => at_host(problem, url),
            }
        })
    }

    /// Sends a GET request, with retries of transient failures.
    pub(super) async fn get(&self, request: Request<'_>) -> Answer<Response> {
        with_retries(async || self.get_once(request).await).await
    }

    /// Sends a GET request once, following redirects.
    pub(super) async fn get_once(&self, request: Request<'_>) -> Answer<Response> {
        let mut url = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(request.accept));
            // A login is sent to the server that it is for, and to no other.
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
            let get = |client: Client| client.get(url.clone()).headers(headers);
            let response = self.send(&url, get).await?;
            match self.redirected(&url, &response)? {
                Some(next) => url = next,
                None => return Ok(response),
            }
        }
        Err(RegistryProblem::protocol(format!("it redirects more than {MAX_REDIRECTS} times")))
    }

    /// Sends a form, with the retries of `get`; redirects are not followed: they would carry the
    /// form along.
    pub(super) async fn post(&self, url: &Url, form: &str) -> Answer<Response> {
        const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
        let post = |client: Client| {
            client.post(url.clone()).header(CONTENT_TYPE, FORM).body(form.to_owned())
        };
        with_retries(async || self.send(url, post).await).await
    }

    /// Whether secrets may be sent to this URL.
    pub(super) fn may_trust(&self, url: &Url) -> bool {
        url.scheme() == "https" || url.scheme() == "http" && self.may_be_plain(url)
    }

    fn may_be_plain(&self, url: &Url) -> bool {
        self.options.trust(&self.endpoint, url).is_insecure
    }

    pub(super) fn stall(&self) -> Duration {
        self.options.stall_timeout
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
            "http" if url.scheme() == "http" || self.may_be_plain(&next) => Ok(Some(next)),
            other => Err(RegistryProblem::protocol(format!(
                "it redirects from a secure address to {:?}, which is none",
                printable(other)
            ))),
        }
    }
}

/// Retries with delays while a failure is transient.
async fn with_retries(once: impl AsyncFn() -> Answer<Response>) -> Answer<Response> {
    let mut tries = 1;
    loop {
        let answer = once().await;
        let wait = match &answer {
            Ok(response) => retry_delay(response, tries),
            Err(problem) => problem.is_transient().then(|| backoff(tries)),
        };
        match wait {
            Some(wait) if tries < MAX_TRIES => tokio::time::sleep(wait).await,
            _ => return answer,
        }
        tries += 1;
    }
}

/// The delay before the next attempt; none if the response is final.
fn retry_delay(response: &Response, tries: u32) -> Option<Duration> {
    let asked = retry_after(response.headers(), SystemTime::now());
    match response.status().as_u16() {
        429 | 503 if asked.is_some_and(|wait| wait > MAX_WAIT) => None,
        // A rate limit without a time: wait longer than for a server error.
        429 => Some(asked.unwrap_or(backoff(tries + 1))),
        408 | 500 | 502 | 503 | 504 => Some(asked.unwrap_or(backoff(tries))),
        _ => None,
    }
}

/// The delay that the server asks for: seconds or a date. (RFC 9110, 10.2.3)
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        // A date in the past does not help.
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).ok(),
    }
}

/// The delay after the given number of attempts.
pub(crate) fn backoff(tries: u32) -> Duration {
    Duration::from_millis(250) * 2u32.saturating_pow(tries.saturating_sub(1)).min(16)
}

/// The whole body of a response, at most `limit` bytes.
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
        match chunk.map_err(|error| of_request(&error, stall))? {
            None => return Ok(bytes),
            Some(chunk) if bytes.len() as u64 + chunk.len() as u64 > limit => {
                return Err(too_large());
            }
            Some(chunk) => bytes.extend_from_slice(&chunk),
        }
    }
}

/// An error response.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    /// Error codes of the distribution specification: `MANIFEST_UNKNOWN`, …
    pub(super) codes: Vec<String>,
    /// The server's message, made printable.
    pub(super) message: String,
}

impl Refusal {
    /// Reads an error response. (OCI distribution specification, "Error Codes")
    pub(super) async fn read(response: Response, stall: Duration) -> Self {
        let status = response.status();
        let retry_after = retry_after(response.headers(), SystemTime::now());
        let body = body(response, "an error", MAX_ERROR_BYTES, stall).await.unwrap_or_default();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let errors = json.get("errors").and_then(|errors| errors.as_array());
        let field = |name: &str| -> Vec<String> {
            let fields = errors.into_iter().flatten().take(8).filter_map(|error| error.get(name));
            fields.filter_map(|field| field.as_str()).map(printable).collect()
        };
        Self { status, retry_after, codes: field("code"), message: field("message").join("; ") }
    }

    /// Whether it has this error code.
    pub(super) fn has_code(&self, code: &str) -> bool {
        self.codes.iter().any(|known| known == code)
    }

    /// The problem for a response without a more specific one.
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
mod tests;
