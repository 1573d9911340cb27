//! HTTP rules, on one node and between two: real agents, proxies and workloads, by the real redirect. Needs root, the
//! kernel and curl.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use conformance::lab::{
    ALLIANCE, DEATHSTAR, EMPIRE, Mesh, Node, Outcome, RULE1, Session, Workload, binary, wait_until,
};

const LANDED: &str = "Ship landed\n 200";
/// Of a connection that never came about.
const UNHEARD: &str = " 000";
const DENIED: &str = "Access denied\r\n 403";

/// A node with a deathstar, and the rule in force.
fn ruled() -> (Node, Workload) {
    let node = Node::up();
    let deathstar = deathstar(&node, DEATHSTAR);
    node.enforce(RULE1);
    (node, deathstar)
}

/// A deathstar that answers.
fn deathstar(node: &Node, labels: &[&str]) -> Workload {
    let serve = binary("examples/deathstar");
    let deathstar = node.start("deathstar", labels, &[serve.to_str().unwrap()]);
    let [address, _] = deathstar.addresses;
    let asked = ["--silent", "--max-time", "1", &format!("http://{address}/v1")];
    wait_until("the deathstar answers", || Outcome::of(node.inside("curl").args(asked)).code == Some(0));
    deathstar
}

/// What a ship is answered: body, then status.
fn ask(node: &Node, address: IpAddr, method: &str, path: &str) -> String {
    ask_as(node, ("tiefighter", EMPIRE), address, method, path)
}

fn ask_as(node: &Node, (name, labels): (&str, &[&str]), address: IpAddr, method: &str, path: &str) -> String {
    let url = format!("http://{}{path}", SocketAddr::new(address, 80));
    let curl = [
        "curl",
        "--silent",
        "--max-time",
        "5",
        "--connect-timeout",
        "2",
        "--write-out",
        " %{http_code}",
        "--request",
        method,
        &url,
    ];
    node.run(name, labels, &curl).stdout
}

/// The ways in and out of the story, over both families.
fn story(node: &Node, deathstar: &Workload) {
    for address in deathstar.addresses {
        assert_eq!(ask(node, address, "POST", "/v1/request-landing"), LANDED, "{address}");
        assert_eq!(ask(node, address, "PUT", "/v1/exhaust-port"), DENIED, "{address}");
    }
}

/// What the node says of a request that a workload of that name would send.
fn explained(node: &Node, from: &str, method: &str, path: &str) -> (Outcome, serde_json::Value) {
    let asked = ["proxy", "explain", "--from", from, "--to", "deathstar", method, path, "-o", "json"];
    let outcome = node.ferromesh(&asked);
    let value = serde_json::from_str(&outcome.stdout).unwrap_or_default();
    (outcome, value)
}

#[test]
fn what_the_story_gets_is_explained_before_it_is_sent() {
    let (node, deathstar) = ruled();
    let probe = binary("probe");
    let waits = [probe.to_str().unwrap(), "ask"];
    let _ships = [node.start("fighter", EMPIRE, &waits), node.start("wing", ALLIANCE, &waits)];
    let (outcome, lands) = explained(&node, "fighter", "POST", "/v1/request-landing");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!((&lands["kernel"]["way"], &lands["proxy"]["verdict"]), (&"proxy".into(), &"FORWARDED".into()));
    let judge = &lands["proxy"]["judges"][0];
    assert_eq!(judge["workload"], "default/deathstar");
    let place = &judge["readings"][0]["rule"]["places"][0];
    assert_eq!((&place["policy"]["name"], &place["http"]), (&"rule1".into(), &0.into()), "{lands}");
    let (outcome, bombs) = explained(&node, "fighter", "PUT", "/v1/exhaust-port");
    assert_eq!(outcome.code, Some(1));
    assert_eq!(bombs["proxy"]["answer"]["status"], 403, "{bombs}");
    assert_eq!(bombs["proxy"]["reason"], "no rule lets it through");
    let (outcome, dropped) = explained(&node, "wing", "POST", "/v1/request-landing");
    assert_eq!((outcome.code, &dropped["kernel"]["way"]), (Some(1), &"dropped".into()), "{dropped}");
    assert!(dropped["proxy"].is_null());
    let nobody = node.ferromesh(&["proxy", "explain", "--from", "wng", "--to", "deathstar", "GET", "/"]);
    assert!(nobody.stderr.contains("did you mean default/wing"), "{nobody:?}");
    // Nothing of it was sent, nor seen; and it is what happens.
    assert!(node.json(&["proxy", "connections"]).as_array().unwrap().is_empty());
    story(&node, &deathstar);
    node.apply("rule1.yaml", &bombing());
    wait_until("the edit is explained", || {
        explained(&node, "fighter", "PUT", "/v1/exhaust-port").0.code == Some(0)
    });
    let budgets = node.json(&["proxy", "budgets"]);
    let all = budgets.as_array().unwrap().iter().find(|row| row["owner"] == "all").unwrap();
    assert!(all["connections"]["bound"].as_u64() > Some(0) && all["draining"] == false, "{budgets}");
}

/// Ships that keep asking for what is always allowed, for what the rule's editor lets them or not, and for what never is;
/// each on a connection that it keeps.
fn fleet(node: &Node, deathstar: &Workload, family: usize) -> Session {
    let address = SocketAddr::new(deathstar.addresses[family], 80).to_string();
    let probe = binary("probe");
    let asked = ["POST:/v1/request-landing", "PUT:/v1/exhaust-port", "GET:/v1/plans"];
    let command = [&[probe.to_str().unwrap(), "requests", &address, "20"][..], &asked].concat();
    node.start(&format!("fleet-{family}"), EMPIRE, &command).session
}

/// What a fleet is answered where it may land.
const LANDING: &str = "GET:/v1/plans 403, POST:/v1/request-landing 200, PUT:/v1/exhaust-port 403, 0 broken";
/// What it is answered where it may use the exhaust port besides.
const BOMBING: &str = "GET:/v1/plans 403, POST:/v1/request-landing 200, PUT:/v1/exhaust-port 503, 0 broken";
/// What it is answered while one rule takes the place of the other.
const BETWEEN: &str =
    "GET:/v1/plans 403, POST:/v1/request-landing 200, PUT:/v1/exhaust-port 403|503, 0 broken";

/// The rule that lets it.
fn bombing() -> String {
    RULE1.to_owned() + "        - method: \"PUT\"\n          path: \"/v1/exhaust-port\"\n"
}

fn proxy(node: &Node) -> i32 {
    let pids = node.proxies();
    assert_eq!(pids.len(), 1, "one proxy runs");
    pids[0]
}

/// Ends the proxy where nobody starts it again, and waits until it is gone.
fn bury_proxy(node: &Node) {
    let pid = proxy(node);
    linux::process::send(pid, 9).unwrap();
    wait_until("the proxy is gone", || has_closed_all(pid));
}

/// Whether a process that was killed holds no descriptor any more: its sockets outlive its command line by a moment, and
/// a connection taken in that moment is reset. Its threads go after they have closed what they share; the first stays,
/// dead, until somebody asks for its end.
fn has_closed_all(pid: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let has = |line: &str| status.lines().any(|own| own.split_whitespace().eq(line.split(' ')));
    has("State: Z (zombie)") && has("Threads: 1")
}

#[test]
fn a_ship_may_ask_to_land_and_may_not_use_the_exhaust_port() {
    let (node, deathstar) = ruled();
    story(&node, &deathstar);
    for address in deathstar.addresses {
        let answer = ask_as(&node, ("xwing", ALLIANCE), address, "POST", "/v1/request-landing");
        assert_eq!(answer, UNHEARD, "{address}");
    }
    let [address, _] = deathstar.addresses;
    let seen = || node.ferromesh(&["observe", "--protocol", "http", "--last", "100"]).stdout;
    for line in [
        format!("http-request FORWARDED (HTTP/1.1 POST http://{address}/v1/request-landing)"),
        format!("http-request DROPPED (HTTP/1.1 PUT http://{address}/v1/exhaust-port) by default/rule1"),
        format!("ms (PUT http://{address}/v1/exhaust-port))"),
    ] {
        wait_until(&line, || seen().contains(&line));
    }
    let denied = node.ferromesh(&["observe", "--http-status", "403", "--last", "1"]).success();
    assert!(
        denied.contains("<- default/deathstar:80") && denied.contains("http-response FORWARDED"),
        "{denied}"
    );
    let metrics = || node.ferromesh(&["metrics", "list"]).success();
    wait_until("requests are counted", || metrics().contains("ferromesh_http_requests_total"));
    let trace = node.ferromesh(&["policy", "trace", "tiefighter", "deathstar:80"]);
    assert!(!trace.stdout.contains("denied"), "{trace:?}");
}

/// It has the kernel's maps to read them.
#[test]
fn the_proxy_can_write_no_map() {
    let (node, _deathstar) = ruled();
    let process = std::path::PathBuf::from(format!("/proc/{}", proxy(&node)));
    let mut maps = 0;
    for entry in std::fs::read_dir(process.join("fd")).unwrap() {
        let entry = entry.unwrap();
        if !std::fs::read_link(entry.path()).unwrap().to_string_lossy().contains("bpf-map") {
            continue;
        }
        maps += 1;
        let info = std::fs::read_to_string(process.join("fdinfo").join(entry.file_name())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let access = u32::from_str_radix(flags.trim(), 8).unwrap() & 3;
        assert_eq!(access, 0, "O_RDONLY: {info}");
    }
    assert_eq!(maps, 3);
}

#[test]
fn an_edit_of_the_rule_holds_for_the_next_request() {
    let (node, deathstar) = ruled();
    let [address, _] = deathstar.addresses;
    assert_eq!(ask(&node, address, "PUT", "/v1/exhaust-port"), DENIED);
    node.apply(
        "rule1.yaml",
        &RULE1.replace("\"POST\"", "\"PUT\"").replace("request-landing", "exhaust-port"),
    );
    assert!(ask(&node, address, "PUT", "/v1/exhaust-port").starts_with("Panic"), "now it may");
    assert_eq!(ask(&node, address, "POST", "/v1/request-landing"), DENIED);
}

/// Verdicts change between two requests of a connection, and nothing else does.
#[test]
fn edits_under_load_are_in_force_at_once_and_break_nothing() {
    let (node, deathstar) = ruled();
    let mut fleets = [0, 1].map(|family| fleet(&node, &deathstar, family));
    for _ in 0..10 {
        for (rule, expected) in [(bombing(), BOMBING), (RULE1.to_owned(), LANDING)] {
            node.apply("rule1.yaml", &rule);
            for fleet in &mut fleets {
                assert_eq!(fleet.ask("now"), expected);
            }
        }
        node.apply("rule1.yaml", &bombing());
        node.apply("rule1.yaml", RULE1);
        fleets.iter_mut().for_each(|fleet| assert_eq!(fleet.ask("before"), BETWEEN));
    }
    assert_eq!(node.drops(), Vec::<String>::new());
}

#[test]
fn the_proxy_and_its_connections_outlive_the_agent_and_the_next_takes_them_over() {
    let (mut node, deathstar) = ruled();
    let mut fleets = [0, 1].map(|family| fleet(&node, &deathstar, family));
    let before = proxy(&node);
    for _ in 0..3 {
        node.kill_agent();
        assert_eq!(proxy(&node), before);
        fleets.iter_mut().for_each(|fleet| assert_eq!(fleet.ask("now"), LANDING));
        node.start_agent();
        story(&node, &deathstar);
        node.apply("rule1.yaml", &bombing());
        fleets.iter_mut().for_each(|fleet| assert_eq!(fleet.ask("now"), BOMBING));
        node.apply("rule1.yaml", RULE1);
        fleets.iter_mut().for_each(|fleet| assert_eq!(fleet.ask("now"), LANDING));
        assert_eq!(proxy(&node), before);
    }
}

#[test]
fn a_proxy_that_is_killed_is_back_before_who_connects_gives_up() {
    let (node, deathstar) = ruled();
    for _ in 0..3 {
        let before = proxy(&node);
        linux::process::send(before, 9).unwrap();
        story(&node, &deathstar);
        assert_ne!(proxy(&node), before);
    }
}

/// Where nobody starts it again, nothing passes that it would have judged, and all else does.
#[test]
fn without_a_proxy_what_it_would_judge_fails_and_nothing_else_does() {
    let (mut node, deathstar) = ruled();
    let other = node.serve("other", &["class=other"], 80);
    let probe = binary("probe");
    let mut ship = node.start("scout", EMPIRE, &[probe.to_str().unwrap(), "ask"]).session;
    let targets = |workload: &Workload| workload.addresses.map(|to| SocketAddr::new(to, 80));
    let agent = node.json(&["status"])["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap();
    let stop = |signal| linux::process::send(agent, signal).unwrap();
    // The listening sockets are there.
    stop(nix::libc::SIGSTOP);
    bury_proxy(&node);
    for (governed, free) in targets(&deathstar).into_iter().zip(targets(&other)) {
        assert_eq!(ship.ask(&format!("http {governed} POST:/v1/request-landing")), "silent");
        assert_eq!(ship.ask(&format!("tcp {free}")), "answered");
    }
    stop(nix::libc::SIGCONT);
    wait_until("it is back", || ask(&node, deathstar.addresses[0], "PUT", "/v1/exhaust-port") == DENIED);
    story(&node, &deathstar);
    // Nor they.
    node.kill_agent();
    bury_proxy(&node);
    for (governed, free) in targets(&deathstar).into_iter().zip(targets(&other)) {
        assert_eq!(ship.ask(&format!("http {governed} POST:/v1/request-landing")), "silent");
        assert_eq!(ship.ask(&format!("tcp {free}")), "answered");
    }
    node.start_agent();
    assert!(node.drops().contains(&"L7 proxy not ready".to_owned()), "{:?}", node.drops());
    wait_until("it is back", || ask(&node, deathstar.addresses[0], "PUT", "/v1/exhaust-port") == DENIED);
    story(&node, &deathstar);
}

/// The same port by HTTP rules for some and without for others.
#[test]
fn whom_a_plain_rule_allows_never_meets_the_proxy() {
    let (node, deathstar) = ruled();
    let plain = RULE1
        .replace("\"rule1\"", "\"rule2\"")
        .replace("org: empire\n    toPorts", "org: alliance\n    toPorts");
    let plain = &plain[..plain.find("      rules:").unwrap()];
    node.apply("rule2.yaml", plain);
    let probe = binary("probe");
    let hold = |name: &str, labels: &[&str], to: IpAddr| {
        let to = SocketAddr::new(to, 80).to_string();
        node.start(name, labels, &[probe.to_str().unwrap(), "hold", &to])
    };
    for (family, address) in deathstar.addresses.into_iter().enumerate() {
        let rebel = hold(&format!("xwing-{family}"), ALLIANCE, address);
        let ship = hold(&format!("tiefighter-{family}"), EMPIRE, address);
        let met = node.json(&["proxy", "connections"]);
        let clients: Vec<_> =
            met.as_array().unwrap().iter().map(|row| row["client"].as_str().unwrap().to_owned()).collect();
        let has = |ship: &Workload| {
            let own =
                format!("{}:", SocketAddr::new(ship.addresses[family], 0).to_string().trim_end_matches(":0"));
            clients.iter().any(|client| client.starts_with(&own))
        };
        assert!(has(&ship) && !has(&rebel), "{clients:?}");
        let bombed = ask_as(&node, ("xwing", ALLIANCE), address, "PUT", "/v1/exhaust-port");
        assert!(bombed.starts_with("Panic"), "{bombed}");
    }
    // Who meets it is counted, and with that whoever has before. It lasts: of whom has gone nobody knows the name any more.
    let mut fighter = node.start("fighter", EMPIRE, &[probe.to_str().unwrap(), "ask"]).session;
    for to in deathstar.addresses.map(|address| SocketAddr::new(address, 80)) {
        assert_eq!(fighter.ask(&format!("http {to} POST:/v1/request-landing")), "200");
    }
    let sources = || {
        let rows = node.json(&["metrics", "list"]);
        let rows =
            rows.as_array().unwrap().iter().filter(|row| row["name"] == "ferromesh_http_requests_total");
        rows.map(|row| row["labels"]["source"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    wait_until("requests are counted", || sources().contains("default/fighter"));
    assert_eq!(sources(), ["default/fighter".to_owned()].into());
}

const EGRESS: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: tiefighter}}
  egress:
  - toEndpoints: [{matchLabels: {class: deathstar}}]
    toPorts:
    - ports: [{port: \"80\", protocol: TCP}]
      rules:
        http:
        - {method: POST, path: /v1/request-landing}
";

/// By the rules of who is called, of who calls, and of both: at one proxy or the other, or at both in turn.
#[test]
fn between_two_nodes_the_rules_of_either_end_hold() {
    let mesh = Mesh::up(2, "");
    mesh.place("deathstar", DEATHSTAR, 1);
    mesh.place("tiefighter", EMPIRE, 0);
    mesh.place("near", EMPIRE, 1);
    mesh.place("xwing", ALLIANCE, 0);
    let deathstar = deathstar(&mesh.nodes[1], &[]);
    let [first, second] = [&mesh.nodes[0], &mesh.nodes[1]];
    let probe = binary("probe");
    let ship = |node: &Node, name: &str| node.start(name, &[], &[probe.to_str().unwrap(), "ask"]);
    let ships = [ship(first, "tiefighter"), ship(second, "near"), ship(first, "xwing")];
    wait_until("the nodes know one another's workloads", || {
        let lists = [first, second].map(|node| node.ferromesh(&["ip", "list", "-o", "json"]).stdout);
        let mut all = ships.iter().chain([&deathstar]).flat_map(|workload| workload.addresses);
        all.all(|address| lists.iter().all(|list| list.contains(&format!("{address}"))))
    });
    let ask = |node: &Node, name: &str, address: IpAddr, method: &str, path: &str| {
        let url = format!("http://{}{path}", SocketAddr::new(address, 80));
        let mut curl = node.within(name, "curl");
        Outcome::of(curl.args([
            "--silent",
            "--max-time",
            "5",
            "--write-out",
            " %{http_code}",
            "-X",
            method,
            &url,
        ]))
        .stdout
    };
    let stories = || {
        for (node, name) in [(first, "tiefighter"), (second, "near")] {
            for address in deathstar.addresses {
                let landed = ask(node, name, address, "POST", "/v1/request-landing");
                assert_eq!(landed, LANDED, "{name} {address}");
                assert_eq!(ask(node, name, address, "PUT", "/v1/exhaust-port"), DENIED, "{name} {address}");
            }
        }
    };

    mesh.apply("rule1.yaml", RULE1);
    second.proxy_ready();
    stories();
    let rebel = |address| ask(first, "xwing", address, "POST", "/v1/request-landing");
    deathstar.addresses.iter().for_each(|address| assert_eq!(rebel(*address), UNHEARD, "{address}"));
    assert!(first.json(&["status"])["l7"].is_null(), "no rule is about an endpoint of the first node");
    // Who is on another node is known by address.
    let bombed = |node: &Node, ship: &str| {
        let line = "http-request DROPPED (HTTP/1.1 PUT http://";
        wait_until(&format!("{ship} {line}"), || {
            let seen = node.ferromesh(&["observe", "--protocol", "http", "--last", "100"]).stdout;
            seen.lines().any(|it| it.contains(ship) && it.contains(line))
        });
    };
    ships[0].addresses.iter().for_each(|address| {
        let ship = SocketAddr::new(*address, 0).to_string();
        bombed(second, &format!(" {}", ship.trim_end_matches('0')));
    });
    bombed(second, "default/near:");

    mesh.apply("out.yaml", EGRESS);
    first.proxy_ready();
    stories();
    bombed(first, "default/tiefighter:");
    // Of two of one node the rules of both ends are held by one proxy in one pass.
    second.proxy_ready();
    let mut curl = second.within("near", "curl");
    let url = format!("http://{}/v1/request-landing", SocketAddr::new(deathstar.addresses[0], 80));
    let landed =
        curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{local_port}", "-X", "POST", &url]);
    let port: u16 = Outcome::of(landed).success().parse().unwrap();
    let recorded = |kind: &str| {
        let seen = second.ferromesh(&["observe", "--protocol", "http", "--all", "-o", "json"]).success();
        let flows = seen.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let own = flows
            .filter(|flow| [&flow["source"]["port"], &flow["destination"]["port"]].contains(&&port.into()));
        own.filter(|flow| flow["l7"]["http"]["kind"] == kind).count()
    };
    wait_until("its answer is recorded", || recorded("response") > 0);
    assert_eq!((recorded("request"), recorded("response")), (1, 1));

    mesh.withdraw("rule1.yaml");
    stories();
    deathstar.addresses.iter().for_each(|address| assert_eq!(rebel(*address), LANDED, "{address}"));
}

/// The proxy's own side of a connection that is over waits a minute for stragglers (TIME_WAIT), in a caller's name. Whoever
/// calls from that very port by then, and is no business of the proxy's any more, gets his answers all the same.
#[test]
fn what_the_proxy_leaves_behind_keeps_no_answer_from_another_node() {
    let mesh = Mesh::up(2, "");
    mesh.place("deathstar", DEATHSTAR, 1);
    mesh.place("tiefighter", EMPIRE, 0);
    let [first, second] = [&mesh.nodes[0], &mesh.nodes[1]];
    let deathstar = deathstar(second, &[]);
    let probe = binary("probe");
    let ship = first.start("tiefighter", &[], &[probe.to_str().unwrap(), "ask"]);
    let ask = |address: IpAddr, port: &str| {
        let url = format!("http://{}/v1/request-landing", SocketAddr::new(address, 80));
        // Without its address a port would have to be free in both families, though it waits for stragglers in one.
        let own =
            ship.addresses.into_iter().find(|own| own.is_ipv4() == address.is_ipv4()).unwrap().to_string();
        let told = " %{http_code}%{errormsg}";
        let how =
            ["--silent", "--max-time", "5", "--write-out", told, "--interface", &own, "--local-port", port];
        Outcome::of(first.within("tiefighter", "curl").args(how).args(["-X", "POST", &url])).stdout
    };
    mesh.apply("rule1.yaml", RULE1);
    second.proxy_ready();
    let any = "1024-65000";
    wait_until("the nodes know one another", || deathstar.addresses.iter().all(|it| ask(*it, any) == LANDED));
    let left_behind = ["-Htn", "state", "time-wait", "dport", "=", ":80"];
    let left_behind = Outcome::of(second.inside("ss").args(left_behind)).success();
    let sockets = left_behind.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse().ok());
    let sockets: Vec<SocketAddr> =
        sockets.filter(|it: &SocketAddr| ship.addresses.contains(&it.ip())).collect();
    mesh.withdraw("rule1.yaml");
    for address in deathstar.addresses {
        let ports = sockets.iter().filter(|it| it.is_ipv4() == address.is_ipv4()).map(SocketAddr::port);
        let answers: Vec<_> = ports.map(|port| (port, ask(address, &port.to_string()))).collect();
        assert!(!answers.is_empty(), "{left_behind}");
        assert!(answers.iter().all(|(_, answer)| answer == LANDED), "{address}: {answers:?}");
    }
}

const TO_NODE: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: to-node, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: tiefighter}}
  egress:
  - toEntities: [host]
    toPorts:
    - ports: [{port: \"8080\", protocol: TCP}]
      rules:
        http:
        - {method: GET, path: /}
  - toEntities: [host]
    toPorts:
    - ports: [{port: \"8081\", protocol: TCP}]
";

/// The proxy cannot call it in a workload's name: refused at once and named, not left to time out.
#[test]
fn http_rules_for_the_node_itself_are_refused_and_said_to_be() {
    let node = Node::up();
    let revision = node.revision();
    for command in
        ["link set lo up", "address add 192.0.2.10/32 dev lo", "address add 2001:db8::10/128 dev lo"]
    {
        Outcome::of(node.inside("ip").args(command.split(' '))).success();
    }
    wait_until("the addresses are known", || node.revision() > revision);
    let probe = binary("probe");
    let servers = ["8080", "8081"].map(|port| Session::start(node.inside(&probe).args(["serve", port])));
    servers.iter().for_each(|server| assert!(server.line().starts_with("serving")));
    node.apply("to-node.yaml", TO_NODE);
    for address in ["192.0.2.10", "2001:db8::10"].map(|address| address.parse().unwrap()) {
        assert_eq!(node.attempt("tiefighter", EMPIRE, "tcp", address, 8080), "refused", "{address}");
        assert_eq!(node.attempt("tiefighter", EMPIRE, "tcp", address, 8081), "answered", "{address}");
    }
    let seen = node.ferromesh(&["observe", "--verdict", "DROPPED", "--last", "20"]).success();
    let refused =
        seen.lines().filter(|line| line.contains(":8080 (host) L7 policy for the node itself DROPPED"));
    assert_eq!(refused.count(), 2, "{seen}");
}

#[test]
fn nothing_of_it_is_left_after_down() {
    let (node, deathstar) = ruled();
    story(&node, &deathstar);
    drop(deathstar);
    node.verb("down", &[]).success();
    node.verb("check", &["--clean"]).success();
}
