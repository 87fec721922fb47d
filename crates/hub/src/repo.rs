//! One repository on the hub: which files it has, what they are, their bytes.

use serde::Deserialize;
use ureq::http::header::{CONTENT_LENGTH, ETAG, HeaderName};
use ureq::http::{HeaderMap, Method, Response, StatusCode, Uri};

use crate::http::{Answer, Client, encode, hops, host, in_circles, redirected, retry_after, text};
use crate::names::{Commit, Etag, FileName};
use crate::retry::Failure;
use crate::{HubError, ModelId};

const REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");

/// The largest listing that is read. The hub's own largest have some ten thousand files.
const MAX_LISTING_BYTES: u64 = 64 << 20;

/// What a revision is.
pub(crate) struct Listing {
    pub(crate) commit: Commit,
    /// As the server gives them.
    pub(crate) names: Vec<String>,
}

#[derive(Deserialize)]
struct RawListing {
    sha: String,
    siblings: Vec<RawFile>,
}

#[derive(Deserialize)]
struct RawFile {
    rfilename: String,
}

/// A file as the hub describes it.
#[derive(Debug)]
pub(crate) struct RemoteFile {
    pub(crate) name: FileName,
    pub(crate) etag: Etag,
    pub(crate) len_bytes: u64,
    /// Where its bytes are, if not at the hub: an address that is good for a while.
    pub(crate) location: Option<Uri>,
}

/// One repository, asked through a client.
#[derive(Clone, Copy)]
pub(crate) struct Repo<'a> {
    pub(crate) client: &'a Client,
    pub(crate) id: &'a ModelId,
}

impl Repo<'_> {
    /// The commit that the id's revision is at, and its files.
    pub(crate) fn listing(&self) -> Result<Listing, Failure> {
        let revision = encode(self.id.revision(), false);
        let uri = self.client.endpoint.join(&format!("api/models/{}/revision/{revision}", self.id.repo()))?;
        let Answer { mut response, uri } = self.client.get(&uri, None)?;
        self.check_status(&response, &uri)?;
        let bytes = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_vec();
        let bytes = bytes.map_err(|_| lost(&uri))?;
        let bad = |reason: &str| bad_answer(&uri, reason);
        let raw: RawListing = serde_json::from_slice(&bytes).map_err(|_| bad("its listing of a model is none"))?;
        let commit = Commit::parse(&raw.sha).ok_or_else(|| bad("its listing of a model names no commit"))?;
        Ok(Listing { commit, names: raw.siblings.into_iter().map(|file| file.rfilename).collect() })
    }

    /// What a file is, without its bytes.
    pub(crate) fn describe(&self, commit: &Commit, name: &FileName) -> Result<RemoteFile, Failure> {
        let mut uri = self.address(commit, name)?;
        // The hub speaks of the file at whichever step of the way to it.
        let (mut etag, mut len_bytes) = (None, None);
        for _ in hops() {
            let response = self.client.send(&Method::HEAD, &uri, None)?;
            self.check_status(&response, &uri)?;
            let headers = response.headers();
            check_commit(commit, headers, &uri)?;
            let is_redirect = response.status().is_redirection();
            let own = |name: &HeaderName| if is_redirect { None } else { text(headers, name) };
            etag = etag.or_else(|| text(headers, &LINKED_ETAG).or_else(|| own(&ETAG)).map(str::to_owned));
            let length = text(headers, &LINKED_SIZE).or_else(|| own(&CONTENT_LENGTH));
            len_bytes = len_bytes.or_else(|| length?.trim().parse().ok());
            let next = if is_redirect { Some(redirected(&uri, headers)?) } else { None };
            match next {
                Some(next) if self.client.endpoint.is_home_of(&next) => uri = next,
                location => return described(name, etag.as_deref(), len_bytes, location, &uri).map_err(Failure::Final),
            }
        }
        Err(in_circles(&uri).into())
    }

    /// A file's bytes, all or those of a `Range`.
    pub(crate) fn content(
        &self,
        commit: &Commit,
        name: &FileName,
        location: Option<Uri>,
        range: Option<&str>,
    ) -> Result<Answer, Failure> {
        let uri = location.map_or_else(|| self.address(commit, name), Ok)?;
        let answer = self.client.get(&uri, range)?;
        self.check_status(&answer.response, &answer.uri)?;
        Ok(answer)
    }

    fn address(&self, commit: &Commit, name: &FileName) -> Result<Uri, HubError> {
        let name = encode(name.as_str(), true);
        self.client.endpoint.join(&format!("{}/resolve/{}/{name}", self.id.repo(), commit.as_str()))
    }

    /// What a status that is none of success means.
    fn check_status<T>(&self, response: &Response<T>, uri: &Uri) -> Result<(), Failure> {
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(());
        }
        let is_busy = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
        let is_home = self.client.endpoint.is_home_of(uri);
        if is_busy || status.is_server_error() || !is_home {
            // Addresses elsewhere are good for a while only: the hub gives a new one.
            let error = HubError::Status { host: host(uri), status: status.as_u16() };
            return Err(Failure::Passing { error, retry_after: retry_after(response.headers()) });
        }
        let id = self.id.repo().to_owned();
        let page = self.client.endpoint.page(&id);
        let error = match (text(response.headers(), &ERROR_CODE), status) {
            (Some("GatedRepo"), _) => HubError::Gated { id, page },
            (Some("RevisionNotFound"), _) => HubError::RevisionNotFound { id, revision: self.id.revision().to_owned() },
            (Some("EntryNotFound"), _) => bad_answer(uri, "it lists a file that it doesn't have"),
            (Some("RepoNotFound"), _) | (_, StatusCode::NOT_FOUND) => HubError::NotFound { id },
            (_, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => HubError::Refused { id, page },
            _ => HubError::Status { host: host(uri), status: status.as_u16() },
        };
        Err(Failure::Final(error))
    }
}

fn described(
    name: &FileName,
    etag: Option<&str>,
    len_bytes: Option<u64>,
    location: Option<Uri>,
    uri: &Uri,
) -> Result<RemoteFile, HubError> {
    let lacks = |what: &str| bad_answer(uri, &format!("it gives no {what} for {name}"));
    let etag = etag.and_then(Etag::parse).ok_or_else(|| lacks("usable etag"))?;
    let len_bytes = len_bytes.ok_or_else(|| lacks("size"))?;
    Ok(RemoteFile { name: name.clone(), etag, len_bytes, location })
}

fn check_commit(commit: &Commit, headers: &HeaderMap, uri: &Uri) -> Result<(), HubError> {
    match text(headers, &REPO_COMMIT) {
        Some(other) if other != commit.as_str() => Err(bad_answer(uri, "it gives a file of another commit")),
        _ => Ok(()),
    }
}

/// The connection ended before the answer did.
pub(crate) fn lost(uri: &Uri) -> Failure {
    let error = HubError::Unreachable { host: host(uri), reason: "the connection was lost".to_owned() };
    Failure::Passing { error, retry_after: None }
}

pub(crate) fn bad_answer(uri: &Uri, reason: &str) -> HubError {
    HubError::BadAnswer { host: host(uri), reason: reason.to_owned() }
}
