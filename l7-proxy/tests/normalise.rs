//! The table of `docs/normalisation.md`, line by line, and what real applications send.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows only functions marked as tests to be tests"
)]

mod harness;

use l7_proxy::stage::normalise::{Path, TargetFault};

fn normalised(raw: &str) -> Result<(String, Vec<String>), TargetFault> {
    let mut path = Path::default();
    path.normalise(raw.as_bytes())?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert_eq!(path.is_changed(), path.canonical() != raw.as_bytes());
    Ok((text(path.canonical()), path.readings().map(text).collect()))
}

#[track_caller]
fn becomes(raw: &str, canonical: &str, readings: &[&str]) {
    let (found, mut also) = normalised(raw).unwrap();
    assert_eq!(found, canonical, "{raw}");
    also.sort();
    assert_eq!(also, readings, "{raw}");
    // What is canonical stays as it is.
    assert_eq!(normalised(canonical).unwrap().0, canonical);
}

#[test]
fn paths_have_one_canonical_form() {
    becomes("/a/b?c=/../%zz", "/a/b?c=/../%zz", &[]);
    becomes("/%61dmin", "/admin", &[]);
    becomes("/%2e%2e/admin", "/admin", &[]);
    becomes("//admin", "/admin", &[]);
    becomes("///", "/", &[]);
    becomes("/./admin", "/admin", &[]);
    becomes("/a/../admin", "/admin", &[]);
    becomes("/../../admin", "/admin", &[]);
    becomes("/a/..", "/", &[]);
    becomes("/a/b/.", "/a/b/", &[]);
    becomes("/a/", "/a/", &[]);
    becomes("/.well-known/x", "/.well-known/x", &[]);
    becomes("/...", "/...", &[]);
    becomes("/%41dmin", "/Admin", &[]);
    becomes("/a%3ab%20c", "/a%3Ab%20c", &["/a:b%20c"]);
    becomes("", "/", &[]);
    becomes("?q", "/?q", &[]);
}

#[test]
fn what_servers_read_differently_has_readings() {
    becomes("/a%2fadmin", "/a%2Fadmin", &["/a/admin"]);
    becomes("/a%2f..%2fadmin?q", "/a%2F..%2Fadmin?q", &["/admin?q"]);
    becomes("/public/..%5cadmin", "/public/..%5Cadmin", &["/admin"]);
    becomes("/public/..;/admin", "/public/..;/admin", &["/admin"]);
    becomes("/.;/admin", "/.;/admin", &["/admin"]);
    becomes("/admin;x=1", "/admin;x=1", &["/admin"]);
    becomes("/%252e%252e/admin", "/%252e%252e/admin", &["/%2e%2e/admin", "/admin"]);
    becomes("/a%252fb", "/a%252fb", &["/a%2fb", "/a/b"]);
    becomes("/a%3Bx/b", "/a%3Bx/b", &["/a/b", "/a;x/b"]);
    becomes("/100%25", "/100%25", &[]);
    becomes("/x%3aundelete", "/x%3Aundelete", &["/x:undelete"]);
    becomes("/x%253aundelete", "/x%253aundelete", &["/x%3aundelete", "/x:undelete"]);
    becomes("/a%2Fb%40c", "/a%2Fb%40c", &["/a%2Fb@c", "/a/b%40c", "/a/b@c"]);
    becomes("/%21%24%26%27%28%29%2a%2b%2c%3d", "/%21%24%26%27%28%29%2A%2B%2C%3D", &["/!$&'()*+,="]);
    becomes("/a%20b%3Fc%23d", "/a%20b%3Fc%23d", &[]);
}

/// Each of these had a reading, by some server's order of steps, that nobody judged.
#[test]
fn readings_are_all_that_any_order_of_steps_makes() {
    for (raw, reading) in [
        // Parameters are cut off, and what is left is decoded.
        ("/public/x%2F..%2F..%2Fadmin;a%2F..%2F..%2Fpublic%2Fy", "/admin"),
        // `\` is a character as any other.
        ("/public/..%2Fadmin%2Fx%5C..%2F..%2Fpublic", "/admin/public"),
        // Between two `/` there is a segment.
        ("/public/..%2Fadmin%2F%2F..%2Fpublic%2Fy", "/admin/public/y"),
    ] {
        let (canonical, readings) = normalised(raw).unwrap();
        assert_eq!(canonical, raw);
        assert!(readings.iter().any(|it| it == reading), "{raw}: {readings:?}");
    }
}

#[test]
fn what_no_application_sends_is_refused() {
    for (raw, fault) in [
        ("/a\\b", TargetFault::Backslash),
        ("/ä", TargetFault::NotAscii),
        ("/%", TargetFault::Escape),
        ("/%4", TargetFault::Escape),
        ("/%zz", TargetFault::Escape),
        ("/a%00b", TargetFault::Nul),
        ("/a%2500b", TargetFault::Nul),
        ("/%c0%af", TargetFault::Overlong),
        ("/%c0%ae%c0%ae/", TargetFault::Overlong),
        ("/%e0%80%af", TargetFault::Overlong),
        ("/%f0%80%80%af", TargetFault::Overlong),
        ("/%25252525252f", TargetFault::Nested),
        ("/a%2Fb%40c;d%2F..%2Fe%5C..%2F%2F..;g%252F%253B%2540..%255C..;h", TargetFault::Ambiguous),
    ] {
        assert_eq!(normalised(raw).unwrap_err(), fault, "{raw}");
    }
}

/// What real applications send.
const SENT: [&str; 12] = [
    "/api/v4/projects/group%2Fproject/repository/files/src%2Fmain.rs?ref=main",
    "/bucket/key%20with%20blanks/a+b/c%2Bd/!-_.*'()",
    "/bucket/%E6%97%A5%E6%9C%AC.txt?X-Amz-Signature=ab%2Fcd%3D",
    "/bucket/caf%E9",
    "/app/page;jsessionid=1A2B.node1?x=1",
    "/odata/Products(1)/Name",
    "/repo/-/tree/a..b/c...d",
    "/@scope%2Fpackage",
    "/v2/library/nginx/manifests/sha256:0123456789abcdef",
    "/search?q=a\\b|c{d}&e=100%&f=//x/../y",
    "/a,b;c=d/e~f",
    "/:8080/$metadata",
];

#[test]
fn what_applications_send_is_kept_byte_by_byte() {
    for raw in SENT {
        assert_eq!(normalised(raw).unwrap().0, raw);
    }
}

/// Where rules look at paths, and let all of them pass.
#[tokio::test(start_paused = true)]
async fn what_applications_send_reaches_the_server_as_it_is() {
    for raw in SENT {
        let rules = || vec![harness::rule("GET", "/.*")];
        let asked = format!("GET {raw} HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(harness::run(rules(), &asked).await.received, asked);
        let asked = harness::http2::ask(rules(), harness::http2::request("GET", raw), "").await;
        assert_eq!(asked.received, [format!("GET http://h{raw}")], "{asked:?}");
    }
}

/// What is said never to be a path is none, and what is one is not said to be none, however much of it is known.
#[test]
fn no_canonical_path_is_taken_for_one_that_cannot_be() {
    let mut store = expression::Expressions::default();
    for raw in [
        "/",
        "/a/b?c=/../%zz",
        "/api/v4/projects/group%2Fproject/x?ref=main",
        "/.well-known/x",
        "/a/.b/..c/...",
        "/bucket/%E6%97%A5.txt?X=ab%2fcd",
        "/app/page;jsessionid=1A?x",
        "//a/./b/../%7e%3a",
        "/@scope%2fpackage",
        "/a/",
    ] {
        let (canonical, readings) = normalised(raw).unwrap();
        for text in readings.iter().map(String::as_str).chain([canonical.as_str()]) {
            for end in 0..=text.len() {
                let literal = text[..end].chars().map(|c| format!("\\x{:02X}", c as u32)).collect::<String>();
                let beginning = store.matcher(&format!("{literal}.*"), false).unwrap();
                assert_eq!(beginning.never_a_path(), None, "{text} up to {end}");
            }
        }
        let literal = canonical.chars().map(|c| format!("\\x{:02X}", c as u32)).collect::<String>();
        assert_eq!(store.matcher(&literal, false).unwrap().never_a_path(), None, "{canonical}");
    }
}

/// Each reading has the query behind it.
#[test]
fn many_readings_of_a_long_target_are_refused() {
    let target = |query: usize| format!("/a%2Fb%252Fc%40d%2540e;f?{}", "q".repeat(query));
    let mut path = Path::default();
    assert_eq!(path.normalise(target(1000).as_bytes()), Ok(()));
    assert!(path.readings().count() > 10);
    assert_eq!(path.normalise(target(60_000).as_bytes()), Err(TargetFault::Ambiguous));
}
