//! Small blocking HTTP requests to the services that hand out credentials.
//!
//! No proxy, no redirects, bodies of at most 64 KiB; an answer's body is never part of an error, since it may be secret.

use std::time::Duration;

use ureq::Agent;
use ureq::tls::TlsConfig;

/// Longest answer that is read, in bytes.
const BODY_BYTES_MAX: u64 = 64 * 1024;

/// An agent that keeps no connection and is done within `timeout`, its name look-up and connection within `connect`.
pub(super) fn agent(tls: TlsConfig, connect: Duration, timeout: Duration) -> Agent {
    Agent::config_builder()
        .tls_config(tls)
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_resolve(Some(connect))
        .timeout_connect(Some(connect))
        .timeout_global(Some(timeout))
        .max_idle_connections(0)
        .user_agent("edge")
        .build()
        .new_agent()
}

/// Status and body of an answer, or why there is none.
pub(super) fn fetch(
    agent: &Agent,
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
) -> Result<(u16, String), String> {
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // A header's value may be the secret itself: the error says only that it can't be sent.
    let request = request
        .body(())
        .map_err(|_| "the address or a header has characters that can't be sent".to_owned())?;
    let mut response = agent.run(request).map_err(|error| explain(&error))?;
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(BODY_BYTES_MAX).read_to_string();
    Ok((status, body.map_err(|error| format!("the answer breaks off: {}", explain(&error)))?))
}

/// What went wrong, for people.
pub(super) fn explain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::Io(source) => source.to_string(),
        other => crate::log::chain(other),
    }
}
