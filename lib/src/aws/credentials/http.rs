//! The links of the chain that ask over HTTP: container endpoint, instance metadata, AWS IoT.

use std::net::IpAddr;
use std::time::Duration;

use ureq::Agent;

use super::answer::{Shape, parse, plain};
use super::{IotConfig, Link, Vars};
use crate::aws::fetch::{agent, fetch};
use crate::aws::tls;

/// The address of the container endpoint when only a path is given (ECS).
const CONTAINER: &str = "http://169.254.170.2";
const METADATA: &str = "http://169.254.169.254";

/// The container endpoint (ECS, EKS Pod Identity, Greengrass).
pub(super) fn container(vars: &Vars) -> Link {
    let relative = vars.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    let full = vars.get("AWS_CONTAINER_CREDENTIALS_FULL_URI");
    let url = match (relative, full) {
        (Some(path), _) if path.starts_with('/') => format!("{CONTAINER}{path}"),
        (Some(path), _) => {
            return Link::Failed(format!(
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI={path:?} does not begin with /"
            ));
        }
        (None, Some(url)) => url.to_owned(),
        (None, None) => {
            return Link::NotSet("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI and _FULL_URI are not set".into());
        }
    };
    match container_credentials(vars, &url) {
        Ok(found) => found,
        Err(why) => Link::Failed(why),
    }
}

fn container_credentials(vars: &Vars, url: &str) -> Result<Link, String> {
    let uri: ureq::http::Uri = url.parse().map_err(|_| format!("{url:?} is no address"))?;
    let https = uri.scheme_str() == Some("https");
    let near = uri.scheme_str() == Some("http") && uri.host().is_some_and(is_near);
    if !https && !near {
        return Err(format!(
            "{url}: plain HTTP is allowed to this host and the link-local container addresses only; use https"
        ));
    }
    let token = match vars.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        // It is replaced now and then, so it is read each time.
        Some(path) => {
            let text =
                std::fs::read_to_string(path).map_err(|e| format!("cannot read the token in {path}: {e}"))?;
            Some(plain(&text, "the authorization token")?)
        }
        None => vars
            .get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
            .map(|t| plain(t, "the authorization token"))
            .transpose()?,
    };
    let tls = if https {
        tls::load(&tls::Files::default()).map_err(|e| crate::log::chain(&e))?
    } else {
        tls::none()
    };
    let agent = agent(tls, Duration::from_secs(2), Duration::from_secs(10));
    let headers: Vec<(&str, &str)> = token.iter().map(|t| ("Authorization", t.as_str())).collect();
    let (status, body) = fetch(&agent, "GET", url, &headers).map_err(|why| format!("{url}: {why}"))?;
    if status != 200 {
        return Err(format!("{url} answers {status}"));
    }
    let found = parse(&body, Shape::Metadata, "container endpoint").map_err(|why| format!("{url}: {why}"))?;
    Ok(Link::Found(found))
}

/// The hosts that credentials may come from over plain HTTP.
fn is_near(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let known = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];
    host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|ip| {
            ip.is_loopback() || known.iter().any(|k| k.parse::<IpAddr>().is_ok_and(|known| known == ip))
        })
}

/// The instance metadata service, version 2 only.
pub(super) fn metadata(vars: &Vars) -> Link {
    if vars.get("AWS_EC2_METADATA_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
        return Link::NotSet("turned off by AWS_EC2_METADATA_DISABLED".into());
    }
    let base = vars.get("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or(METADATA).trim_end_matches('/');
    let agent = agent(tls::none(), Duration::from_secs(1), Duration::from_secs(5));
    let ttl = [("X-aws-ec2-metadata-token-ttl-seconds", "21600")];
    let token = match fetch(&agent, "PUT", &format!("{base}/latest/api/token"), &ttl) {
        Ok((200, token)) => token,
        Ok((status, _)) => {
            return Link::Failed(format!("{base} answers {status} to the request for a session token"));
        }
        // Off EC2 nobody answers there, which is the usual end of the chain.
        Err(why) => return Link::NotSet(format!("nobody answers at {base} ({why})")),
    };
    match metadata_credentials(&agent, base, token.trim()) {
        Ok(found) => found,
        Err(why) => Link::Failed(why),
    }
}

fn metadata_credentials(agent: &Agent, base: &str, token: &str) -> Result<Link, String> {
    let headers = [("X-aws-ec2-metadata-token", token)];
    let folder = format!("{base}/latest/meta-data/iam/security-credentials/");
    let get = |url: &str| fetch(agent, "GET", url, &headers).map_err(|why| format!("{url}: {why}"));
    let role = match get(&folder)? {
        (200, body) => body.lines().next().unwrap_or("").trim().to_owned(),
        (404, _) => String::new(),
        (status, _) => return Err(format!("{folder} answers {status}")),
    };
    if role.is_empty() {
        return Err("this instance has no IAM role; attach an instance profile to it".into());
    }
    if !role.bytes().all(|b| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b)) {
        return Err(format!("{folder} names a role that can't be one"));
    }
    let url = format!("{folder}{role}");
    match get(&url)? {
        (200, body) => {
            let source = format!("instance metadata, role {role}");
            parse(&body, Shape::Metadata, &source).map(Link::Found).map_err(|why| format!("{url}: {why}"))
        }
        (status, _) => Err(format!("{url} answers {status}")),
    }
}

/// The credential provider of AWS IoT, over mutual TLS.
pub(super) fn iot(config: &IotConfig) -> Link {
    match iot_credentials(config) {
        Ok(found) => found,
        Err(why) => Link::Failed(why),
    }
}

fn iot_credentials(config: &IotConfig) -> Result<Link, String> {
    let files =
        tls::Files { ca: config.ca.clone(), cert: Some(config.cert.clone()), key: Some(config.key.clone()) };
    let tls = tls::load(&files).map_err(|e| crate::log::chain(&e))?;
    let agent = agent(tls, Duration::from_secs(5), Duration::from_secs(15));
    let url = &config.url;
    let headers: Vec<(&str, &str)> =
        config.thing_name.iter().map(|t| ("x-amzn-iot-thingname", t.as_str())).collect();
    let (status, body) = fetch(&agent, "GET", url, &headers).map_err(|why| format!("{url}: {why}"))?;
    match status {
        200 => parse(&body, Shape::Iot, "AWS IoT").map(Link::Found).map_err(|why| format!("{url}: {why}")),
        403 => Err(format!(
            "{url} answers 403: the certificate's policy must allow iot:AssumeRoleWithCertificate on the role alias"
        )),
        404 => Err(format!("{url} answers 404: is the role alias right?")),
        status => Err(format!("{url} answers {status}")),
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
