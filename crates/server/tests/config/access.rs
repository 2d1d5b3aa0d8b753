//! `security` and `limits`.

use milvus_cdc::config::EMBEDDED;
use milvus_cdc::config::access::{Open, Role};

use crate::{SOURCE, parse};

#[test]
fn security_and_limits_are_checked() {
    let config = parse(&format!(
        "security: {{open: [healthz, docs], tls: {{certFile: c, keyFile: k, clientCAFile: ca}}, tokens: [\
           {{name: ops, token: '${{PW}}-0123456789', role: full}}, {{name: eyes, token: 'sixteen-or-more-', role: read}}]}}\n\
         limits: {{requestsPerSecond: 5, burst: 7, concurrentRequests: 3, connections: 9, eventStreams: 0, bodyBytes: 2048, \
           bodyTimeoutMs: 400, headerTimeoutMs: 500, writeTimeoutMs: 600}}\n{SOURCE}"
    ))
    .unwrap();
    let access = config.access;
    let open: Vec<_> = access.open.into_iter().collect();
    assert_eq!(open, [Open::Healthz, Open::Docs]);
    assert_eq!(access.tls.unwrap().client_ca.unwrap().to_str(), Some("ca"));
    let tokens: Vec<_> = access
        .tokens
        .iter()
        .map(|t| (t.name.as_str(), t.token.expose(), t.role))
        .collect();
    assert_eq!(
        tokens,
        [
            ("ops", "from-env-0123456789", Role::Full),
            ("eyes", "sixteen-or-more-", Role::Read)
        ]
    );
    assert!(!format!("{:?}", access.tokens).contains("from-env"));
    assert_eq!(
        (access.requests_per_second.get(), access.burst.get()),
        (5, 7)
    );
    assert_eq!(
        (
            access.concurrent_requests,
            access.connections,
            access.event_streams
        ),
        (3, 9, 0)
    );
    assert_eq!(
        (access.body.bytes, access.body.timeout.as_millis()),
        (2048, 400)
    );
    assert_eq!(
        (
            access.header_timeout.as_millis(),
            access.write_timeout.as_millis()
        ),
        (500, 600)
    );
    assert_eq!(
        parse(SOURCE).unwrap().access,
        parse(EMBEDDED).unwrap().access
    );

    let token = "token: hush-hush-hush-hush";
    let cases: &[(&str, &str)] = &[
        (
            "security: {tokens: [{name: a}]}",
            "security.tokens[0].token: missing",
        ),
        (
            "security: {tokens: [{token: hush}]}",
            "security.tokens[0].token: at least 16",
        ),
        (
            "security: {tokens: [{token: 5}]}",
            "security.tokens[0].token: a string expected",
        ),
        (
            "security: {tokens: [{token: 'file:/nowhere/t'}]}",
            "/nowhere/t",
        ),
        (
            &format!("security: {{tokens: [{{{token}, name: a}}]}}"),
            "security.tokens[0].role: missing",
        ),
        (
            &format!("security: {{tokens: [{{{token}, name: a, role: admin}}]}}"),
            "one of read, full",
        ),
        (
            &format!("security: {{tokens: [{{{token}, name: 'a b', role: full}}]}}"),
            "security.tokens[0].name",
        ),
        (
            &format!(
                "security: {{tokens: [{{{token}, name: a, role: full}}, {{{token}, name: b, role: full}}]}}"
            ),
            "security.tokens[1].token: two names",
        ),
        (
            "security: {open: [cdc]}",
            "healthz, readyz, metrics, docs expected, not \"cdc\"",
        ),
        (
            "security: {tls: {certFile: c}}",
            "security.tls.certFile: certFile and keyFile",
        ),
        ("security: {token: x}", "security.token: unknown field"),
        ("limits: {burst: 0}", "limits.burst"),
        ("limits: {headerTimeoutMs: 1}", "from 100"),
        ("limits: {requests: 1}", "limits.requests: unknown field"),
    ];
    for (text, part) in cases {
        let error = parse(&format!("{text}\n{SOURCE}")).unwrap_err();
        assert!(
            error.contains(part) && !error.contains("hush"),
            "{part:?} in {error}"
        );
    }
}
