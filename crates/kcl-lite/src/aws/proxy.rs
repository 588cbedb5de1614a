//! The proxy that the environment sets for a request.
//!
//! Variables are read through a function, so that tests can set their own.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use aws_smithy_http_client::proxy::ProxyConfig;

/// The IPv6 addresses of the EC2 instance metadata service and of the EKS credentials service, which are
/// reachable only from the machine.
const INSTANCE: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
];

/// A proxy, and the hosts that bypass it.
#[derive(Clone)]
pub(super) struct Proxy {
    pub(super) config: ProxyConfig,
    /// Whether the connection to the proxy uses TLS.
    pub(super) has_tls: bool,
    url: String,
    but: String,
}

impl fmt::Debug for Proxy {
    /// Omits the password in the URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = without_password(&self.url);
        f.debug_struct("Proxy").field("url", &url).field("but", &self.but).finish_non_exhaustive()
    }
}

/// Returns the proxy for requests with or without TLS, by the rules of curl. A blank variable is not set.
pub(super) fn proxy(
    is_tls: bool,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<Proxy>, String> {
    // Under CGI a client could set HTTP_PROXY, because the request header `Proxy` becomes that variable.
    let is_cgi = variable("REQUEST_METHOD").is_some();
    let names: &[&str] = match (is_tls, is_cgi) {
        (true, _) => &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        (false, false) => &["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
        (false, true) => &["http_proxy", "ALL_PROXY", "all_proxy"],
    };
    let Some((name, url)) = names.iter().find_map(|name| Some((name, variable(name)?))) else {
        return Ok(None);
    };
    let url = url.trim();
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let config = ProxyConfig::all(url.as_str()).map_err(|_| {
        format!(
            "{name} `{}` is not an HTTP proxy; one looks like http://proxy.example:3128",
            without_password(&url)
        )
    })?;
    let but = variable("NO_PROXY").or_else(|| variable("no_proxy")).unwrap_or_default();
    let has_tls = url.starts_with("https:");
    Ok(Some(Proxy { config: config.no_proxy(&but), has_tls, url, but }))
}

/// Returns whether a proxy cannot reach `host`: loopback and link-local addresses, such as those of the
/// credentials services on EC2, ECS and EKS.
pub(super) fn is_local(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse() {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local(),
        Ok(IpAddr::V6(address)) => {
            address.is_loopback() || address.is_unicast_link_local() || INSTANCE.contains(&address)
        }
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// Returns `url` without the user name and password.
#[must_use]
pub fn without_password(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    // Split at the last `@`, because a password may contain one.
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    format!("{scheme}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the debug text of the proxy that these variables set, or the error.
    fn found(is_tls: bool, variables: &[(&str, &str)]) -> String {
        let variable = |name: &str| {
            let (_, value) = variables.iter().find(|(set, _)| *set == name)?;
            (!value.trim().is_empty()).then(|| (*value).to_owned())
        };
        proxy(is_tls, variable).map_or_else(|error| error, |found| format!("{found:?}"))
    }

    #[test]
    fn a_request_goes_through_the_proxy_of_its_scheme() {
        for (is_tls, variables, expected) in [
            (true, &[][..], "None"),
            (true, &[("HTTPS_PROXY", "http://a:1"), ("https_proxy", "http://b:1")], "a:1"),
            (true, &[("HTTPS_PROXY", " "), ("https_proxy", "http://b:1")], "b:1"),
            (true, &[("HTTP_PROXY", "http://a:1"), ("ALL_PROXY", "b:1")], "b:1"),
            (true, &[("HTTP_PROXY", "http://a:1")], "None"),
            (false, &[("HTTP_PROXY", "http://a:1"), ("HTTPS_PROXY", "http://b:1")], "a:1"),
            (false, &[("HTTP_PROXY", "http://a:1"), ("REQUEST_METHOD", "GET")], "None"),
            (
                true,
                &[("all_proxy", "https://me:secret@a:1"), ("no_proxy", "example.com")],
                "example.com",
            ),
        ] {
            let found = found(is_tls, variables);
            assert!(!found.contains("secret"), "{found}");
            assert!(found.contains(expected), "{variables:?}: {found}");
        }
    }

    #[test]
    fn what_is_no_http_proxy_is_named_without_its_password() {
        for url in ["socks5://me:secret@proxy:1080", "http://me:secret@", "http://me:secret@a b"] {
            let refused = found(true, &[("ALL_PROXY", url)]);
            assert!(refused.contains("ALL_PROXY `"), "{refused}");
            assert!(refused.contains("proxy.example:3128"), "{refused}");
            assert!(!refused.contains("secret"), "{refused}");
        }
    }

    #[test]
    fn what_is_on_this_machine_needs_no_proxy() {
        for host in
            ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "169.254.169.254", "[fd00:ec2::23]"]
        {
            assert!(is_local(host), "{host}");
        }
        for host in
            ["kinesis.us-east-1.amazonaws.com", "10.0.0.1", "localhost.example", "[fd00::1]"]
        {
            assert!(!is_local(host), "{host}");
        }
    }
}
