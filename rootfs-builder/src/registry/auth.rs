//! Authentication: from a registry's challenge to the `Authorization` header, basic or bearer.
//!
//! (Distribution registry, "Token Authentication Specification" and "OAuth2"; RFC 7235)

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use super::credentials::{Credentials, Login};
use super::http::{Http, Refusal, Request, body};
use crate::error::RegistryProblem;

/// Maximum length of a token answer; Docker Hub's have about 5 KiB.
const MAX_TOKEN_BYTES: u64 = 1 << 20;

/// An authentication challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// The best supported challenge of a 401 response.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for header in headers.get_all(WWW_AUTHENTICATE).into_iter().take(8) {
            let Some(challenges) = header.to_str().ok().and_then(parse) else {
                continue;
            };
            for challenge in challenges {
                match challenge {
                    Self::Basic => basic = Some(challenge),
                    bearer @ Self::Bearer { .. } => return Some(bearer),
                }
            }
        }
        basic
    }
}

fn parse(header: &str) -> Option<Vec<Challenge>> {
    let parsed = http_auth::parse_challenges(header).ok()?;
    let known = parsed.iter().filter_map(|challenge| {
        let param = |name: &str| {
            let mut params = challenge.params.iter();
            let found = params.find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        if challenge.scheme.eq_ignore_ascii_case("bearer") {
            Some(Challenge::Bearer { realm: param("realm")?, service: param("service") })
        } else {
            challenge.scheme.eq_ignore_ascii_case("basic").then_some(Challenge::Basic)
        }
    });
    Some(known.collect())
}

/// Answers a challenge: the value of the `Authorization` header; none if there is nothing to send.
pub(super) async fn answer(
    http: &Http,
    challenge: &Challenge,
    registry: &str,
    scope: Option<&str>,
    login: Option<&Login>,
) -> Result<Option<HeaderValue>, RegistryProblem> {
    let credentials = login.map(|login| &login.credentials);
    match (challenge, credentials) {
        (_, Some(Credentials::RegistryToken(token))) => bearer(token).map(Some),
        (Challenge::Basic, Some(Credentials::Password { user, password })) => {
            Ok(Some(basic(user, password)?))
        }
        (Challenge::Basic, _) => Ok(None),
        (Challenge::Bearer { realm, service }, _) => {
            let token = Token { http, registry, login, scope, service: service.as_deref() };
            bearer(&token.fetch(realm).await?).map(Some)
        }
    }
}

/// A request for a token.
struct Token<'a> {
    http: &'a Http,
    registry: &'a str,
    login: Option<&'a Login>,
    scope: Option<&'a str>,
    service: Option<&'a str>,
}

impl Token<'_> {
    async fn fetch(&self, realm: &str) -> Result<String, RegistryProblem> {
        let mut url = Url::parse(realm).map_err(|_| {
            RegistryProblem::protocol("the address at which it gives out tokens is malformed")
        })?;
        if !self.http.may_trust(&url) {
            return Err(RegistryProblem::protocol(format!(
                "it wants logins to be sent to {}, unencrypted",
                url.host_str().unwrap_or("an address without a host")
            )));
        }
        let response = match self.login.map(|login| &login.credentials) {
            Some(Credentials::IdentityToken(token)) => {
                // A form is encoded as a query is.
                let mut form = url.clone();
                form.set_query(None);
                self.append_to(&mut form, "client_id", Some("boxlite"));
                let secret = [("grant_type", "refresh_token"), ("refresh_token", token)];
                form.query_pairs_mut().extend_pairs(secret);
                self.http.post(&url, form.query().unwrap_or_default()).await?
            }
            Some(Credentials::Password { user, password }) => {
                self.append_to(&mut url, "account", Some(user));
                self.get(&url, Some(&basic(user, password)?)).await?
            }
            _ => {
                self.append_to(&mut url, "account", None);
                self.get(&url, None).await?
            }
        };
        if response.status() != StatusCode::OK {
            return Err(self.refused(Refusal::read(response, self.http.stall()).await));
        }
        let json = body(response, "a token", MAX_TOKEN_BYTES, self.http.stall()).await?;
        // The cause is not shown: it may contain the secret.
        serde_json::from_slice::<TokenAnswer>(&json)
            .ok()
            .and_then(TokenAnswer::into_token)
            .ok_or_else(|| RegistryProblem::protocol("its token server sends no token"))
    }

    /// Appends what the token is for.
    fn append_to(&self, url: &mut Url, name: &str, value: Option<&str>) {
        let pairs = [("service", self.service), ("scope", self.scope), (name, value)];
        let pairs = pairs.iter().filter_map(|(name, value)| Some((name, (*value)?)));
        url.query_pairs_mut().extend_pairs(pairs);
    }

    async fn get(
        &self,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, RegistryProblem> {
        self.http.get(Request { url, accept: "application/json", from: 0, authorization }).await
    }

    fn refused(&self, refusal: Refusal) -> RegistryProblem {
        let is_denied = matches!(
            refusal.status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST
        );
        match self.login {
            Some(login) if is_denied => login_refused(self.registry, login),
            None if is_denied && refusal.status != StatusCode::BAD_REQUEST => {
                RegistryProblem::LoginNeeded { registry: self.registry.to_owned() }
            }
            _ => refusal.into_problem(),
        }
    }
}

/// The registry refuses this login.
pub(super) fn login_refused(registry: &str, login: &Login) -> RegistryProblem {
    RegistryProblem::LoginRefused {
        registry: registry.to_owned(),
        user: login.credentials.user().to_owned(),
        source_name: login.source_name.clone(),
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl TokenAnswer {
    fn into_token(self) -> Option<String> {
        self.token.or(self.access_token).filter(|token| !token.is_empty())
    }
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, RegistryProblem> {
    secret(format!("Basic {}", BASE64.encode(format!("{user}:{password}"))))
}

fn bearer(token: &str) -> Result<HeaderValue, RegistryProblem> {
    secret(format!("Bearer {token}"))
}

fn secret(text: String) -> Result<HeaderValue, RegistryProblem> {
    let mut value = HeaderValue::try_from(text).map_err(|_| {
        RegistryProblem::protocol("its token has characters that no header may have")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests;
