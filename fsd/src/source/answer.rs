//! Reads the head of an answer: is it the range that was asked for, and of which version of the object?

use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName};
use reqwest::{RequestBuilder, Response, StatusCode};

/// What tells two versions of an object apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Validator {
    /// A strong entity tag, with its quotes.
    ETag(String),
    /// The Last-Modified date as the server wrote it.
    LastModified(String),
    /// What was asked for is named by the digest of its bytes, so that there is one version.
    Digest(String),
    /// The server offers neither: only the length (and what the opener makes of the first bytes) is known.
    Length,
}

impl Validator {
    /// The best that `headers` offer. A weak tag is none: it may stay the same while bytes change.
    pub(super) fn from_headers(headers: &HeaderMap) -> Self {
        if let Some(tag) = text(headers, header::ETAG).filter(|tag| tag.starts_with('"')) {
            return Self::ETag(tag.to_owned());
        }
        match text(headers, header::LAST_MODIFIED) {
            Some(date) => Self::LastModified(date.to_owned()),
            None => Self::Length,
        }
    }

    /// Asks the server to answer only for this version.
    ///
    /// Not with If-Range: its mismatch is a 200 with the whole object, and its match may leave out Last-Modified.
    pub(super) fn condition(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::ETag(tag) => request.header(header::IF_MATCH, tag),
            Self::LastModified(date) => request.header(header::IF_UNMODIFIED_SINCE, date),
            Self::Length | Self::Digest(_) => request,
        }
    }

    /// Whether `headers` speak of this version. Servers may ignore a condition, so every answer is looked at.
    pub(super) fn matches(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::ETag(tag) => text(headers, header::ETAG) == Some(tag),
            Self::LastModified(date) => text(headers, header::LAST_MODIFIED) == Some(date),
            Self::Length | Self::Digest(_) => true,
        }
    }
}

impl std::fmt::Display for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ETag(tag) => write!(f, "etag {tag}"),
            Self::LastModified(date) => write!(f, "last-modified {date}"),
            Self::Digest(digest) => write!(f, "{digest}"),
            Self::Length => write!(f, "length"),
        }
    }
}

/// The Content-Range of an answer: `start..end` of `total` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) total: u64,
}

/// The one range that `response` carries; `None` if it does not say so plainly.
pub(super) fn part(response: &Response) -> Option<Part> {
    let plain = text(response.headers(), header::CONTENT_ENCODING).is_none_or(|coding| coding == "identity");
    let part = parse_range(text(response.headers(), header::CONTENT_RANGE)?)?;
    let length_fits = response.content_length().is_none_or(|length| length == part.end - part.start);
    (plain && length_fits).then_some(part)
}

/// Whether a 416 answer says that the object is empty.
pub(super) fn says_empty(headers: &HeaderMap) -> bool {
    text(headers, header::CONTENT_RANGE).is_some_and(|range| range.trim() == "bytes */0")
}

/// The seconds of Retry-After. A date, the other form, is left to our own pauses.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    number(text(headers, header::RETRY_AFTER)?).map(Duration::from_secs)
}

/// Whether another attempt may well get another answer.
pub(super) fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS].contains(&status)
}

fn parse_range(value: &str) -> Option<Part> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (start, last, total) = (number(first)?, number(last)?, number(total)?);
    (start <= last && last < total).then(|| Part { start, end: last + 1, total })
}

/// Only digits: `str::parse` would take a sign too.
fn number(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_content_range_is_understood() {
        assert_eq!(parse_range("bytes 0-9/10"), Some(Part { start: 0, end: 10, total: 10 }));
        for bad in [
            "",
            "bytes */10",
            "bytes 0-9/*",
            "bytes 0-10/10",
            "bytes 5-4/10",
            "bytes +0-9/10",
            "bytes 0-18446744073709551615/18446744073709551615",
            "bytes 0-99999999999999999999/99999999999999999999",
            "items 0-9/10",
            "bytes 0-/10",
        ] {
            assert_eq!(parse_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_weak_tag_gives_way_to_the_date() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ETAG, "W/\"a\"".parse().unwrap());
        assert_eq!(Validator::from_headers(&headers), Validator::Length);

        headers.insert(header::LAST_MODIFIED, "Mon, 23 Nov 2026 20:00:00 GMT".parse().unwrap());
        assert_eq!(
            Validator::from_headers(&headers),
            Validator::LastModified("Mon, 23 Nov 2026 20:00:00 GMT".to_owned())
        );

        headers.insert(header::ETAG, "\"a\"".parse().unwrap());
        assert_eq!(Validator::from_headers(&headers), Validator::ETag("\"a\"".to_owned()));
    }
}
