use std::fs;

use super::{cilium, say, says};

fn kubernetes(spec: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: rule1}}\nspec:\n{spec}")
}

#[test]
fn the_story_of_the_demo() {
    let rule1 = fs::read_to_string("../examples/star-wars/rule1.yaml").unwrap();
    says(&rule1, &[]);
    let slip = rule1.replace("fromEndpoints", "fromEndpoint").replace("\"80\"", "\"80x\"");
    says(
        &slip,
        &[
            "rule1.yaml:12 spec.ingress[0].fromEndpoint: unknown, did you mean fromEndpoints",
            "rule1.yaml:17 spec.ingress[0].toPorts[0].ports[0].port: found \"80x\", expected 1-65535 or a port name",
        ],
    );
}

#[test]
fn errors_name_line_path_what_was_found_and_what_is_accepted() {
    let cases: &[(&str, &str)] = &[
        (
            "  ingress:\n  - fromEndpoints:\n",
            "7 spec.ingress[0].fromEndpoints: found nothing, expected a value: write one ([] or {} if it is meant to be empty), or leave the field out",
        ),
        ("  ingress: yes please\n", "6 spec.ingress: found \"yes please\", expected a list"),
        (
            "  ingress:\n  - fromEndpoints: [{matchLabels: {org: 1}}]\n",
            "7 spec.ingress[0].fromEndpoints[0].matchLabels.org: found 1, expected a string: write \"1\"",
        ),
        (
            "  ingress:\n  - fromEndpoints: [{matchLabels: {k8: x, 'ks:org': x}}]\n",
            "7 spec.ingress[0].fromEndpoints[0].matchLabels.ks:org: found label source \"ks\", expected k8s:, any: or reserved:, did you mean k8s:",
        ),
        (
            "  ingressDeny:\n  - fromEndpoints: [{matchLabels: {'reserved:hots': ''}}]\n",
            "7 spec.ingressDeny[0].fromEndpoints[0].matchLabels.reserved:hots: found reserved label \"hots\", which nothing has, did you mean host",
        ),
        (
            "  ingressDeny:\n  - fromEndpoints: [{matchLabels: {'cidr:10.0.0.0/8': ''}}]\n",
            "7 spec.ingressDeny[0].fromEndpoints[0].matchLabels.cidr:10.0.0.0/8: prefixes are not selected by label; use fromCIDR, toCIDR or a CIDRSet",
        ),
        (
            "  ingress:\n  - fromEntities: [wrld]\n",
            "7 spec.ingress[0].fromEntities[0]: found \"wrld\", did you mean world",
        ),
        (
            "  ingress:\n  - fromCIDR: [10.0.0.0/33]\n",
            "7 spec.ingress[0].fromCIDR[0]: found \"10.0.0.0/33\", expected an address prefix such as 10.0.0.0/8 or fd00::/8",
        ),
        (
            "  ingress:\n  - fromCIDRSet: [{cidr: fd00::/8, except: [10.0.0.0/8]}]\n",
            "7 spec.ingress[0].fromCIDRSet[0].except[0]: found 10.0.0.0/8, expected a smaller prefix inside fd00::/8",
        ),
        (
            "  ingress:\n  - fromCIDRSet: [{cidrGroupRef: offices}]\n",
            "7 spec.ingress[0].fromCIDRSet[0].cidrGroupRef: CIDR groups are not read by this version; write the prefixes out",
        ),
        (
            "  ingress:\n  - fromEntities: [host]\n    fromCIDR: [10.0.0.0/8]\n",
            "8 spec.ingress[0].fromCIDR: cannot stand beside fromEntities in one rule; write two rules",
        ),
        (
            "  egress:\n  - toFQDNs: [{matchName: a.example}]\n",
            "7 spec.egress[0].toFQDNs: names are not enforced by this version; use toCIDR or toEndpoints",
        ),
        (
            "  egress:\n  - toServices: [{}]\n",
            "7 spec.egress[0].toServices[0]: found a mapping, expected k8sService or k8sServiceSelector",
        ),
        (
            "  egress:\n  - toServices: [{k8sService: {name: web}}]\n",
            "7 spec.egress[0].toServices[0].k8sService.serviceName: missing, expected the name of a Service",
        ),
        (
            "  egress:\n  - toServices: [{k8sServiceSelector: {namespace: team}}]\n",
            "7 spec.egress[0].toServices[0].k8sServiceSelector.selector: missing, expected labels of services ({} is every service)",
        ),
        (
            "  egress:\n  - toEndpoints: [{}]\n    toServices: [{k8sService: {serviceName: web}}]\n",
            "8 spec.egress[0].toServices: cannot stand beside toEndpoints in one rule; write two rules",
        ),
        (
            "  ingress:\n  - toServices: [{k8sService: {serviceName: web}}]\n",
            "7 spec.ingress[0].toServices: unknown, expected authentication, fromCIDR, fromCIDRSet, fromEndpoints, fromEntities, fromGroups, fromNodes, fromRequires, icmps or toPorts",
        ),
        (
            "  egress:\n  - toPorts: [{ports: [{port: 0, protocol: ICMPX}]}]\n",
            "7 spec.egress[0].toPorts[0].ports[0].protocol: found \"ICMPX\", did you mean ICMP",
        ),
        (
            "  egress:\n  - toPorts: [{ports: [{port: 90, endPort: 80}]}]\n",
            "7 spec.egress[0].toPorts[0].ports[0].endPort: found 80, expected 90 (port) or more",
        ),
        (
            "  egress:\n  - toPorts: [{ports: [{port: web, endPort: 80}]}]\n",
            "7 spec.egress[0].toPorts[0].ports[0].endPort: goes with a number, not with the port name \"web\"",
        ),
        (
            "  egress:\n  - toPorts: [{ports: []}]\n",
            "7 spec.egress[0].toPorts[0].ports: found an empty list, expected at least one port (port \"0\" is every port)",
        ),
        (
            "  egress:\n  - icmps: [{fields: [{type: EchoReqest}]}]\n",
            "7 spec.egress[0].icmps[0].fields[0].type: found \"EchoReqest\", did you mean EchoRequest",
        ),
        (
            "  egress:\n  - icmps: [{fields: [{type: 8}]}]\n    toPorts: [{ports: [{port: \"80\"}]}]\n",
            "7 spec.egress[0].icmps: stands without toPorts; write a rule of its own for the ports",
        ),
        (
            "  enableDefaultDeny: {ingress: true}\n",
            "4 spec: empty: expected a rule in ingress, ingressDeny, egress or egressDeny (ingress: [{}] denies all)",
        ),
        (
            "  ingress: [{}]\n  nodeSelector: {}\n",
            "7 spec.nodeSelector: policy for the host itself is not enforced by this version; use endpointSelector",
        ),
        (
            "  ingressDeny:\n  - toPorts: [{ports: [{port: \"80\"}], rules: {http: []}}]\n",
            "7 spec.ingressDeny[0].toPorts[0].rules: unknown, expected ports",
        ),
        (
            "  ingress:\n  - authentication: {mode: maybe}\n",
            "7 spec.ingress[0].authentication.mode: found \"maybe\", expected disabled, required or test-always-fail",
        ),
        (
            "  ingress:\n  - toPorts: [{ports: [{port: \"80\", protocol: UDP}], rules: {http: [{}]}}]\n",
            "7 spec.ingress[0].toPorts[0].rules: rules are for TCP: write protocol: TCP beside the port (DNS rules: ANY, UDP or TCP)",
        ),
        ("  ingress: [{}]\n  ingress: [{}]\n", "7 ingress: given twice, first on line 6"),
    ];
    for (spec, expected) in cases {
        let told = say(&cilium(spec));
        assert_eq!(
            told.first().map(String::as_str),
            Some(format!("rule1.yaml:{expected}").as_str()),
            "{told:#?}"
        );
    }
}

#[test]
fn errors_of_network_policies() {
    let cases: &[(&str, &str)] = &[
        (
            "  ingress: []\n",
            "4 spec.podSelector: missing, expected a selector ({} selects every pod of the namespace)",
        ),
        (
            "  podSelector: {}\n  policyTypes: [ingress]\n",
            "6 spec.policyTypes[0]: found \"ingress\", did you mean Ingress",
        ),
        (
            "  podSelector: {}\n  ingress: [{from: [{}]}]\n",
            "6 spec.ingress[0].from[0]: found a mapping, expected podSelector, namespaceSelector or ipBlock",
        ),
        (
            "  podSelector: {}\n  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]\n",
            "6 spec.ingress[0].from[0].ipBlock: stands alone: a peer is an ipBlock or selectors, not both",
        ),
        (
            "  podSelector: {}\n  ingress: [{ports: [{endPort: 80}]}]\n",
            "6 spec.ingress[0].ports[0].endPort: goes with port, which is missing",
        ),
        (
            "  podSelector: {}\n  ingress: [{ports: [{port: 0}]}]\n",
            "6 spec.ingress[0].ports[0].port: found \"0\", expected 1-65535 or a port name",
        ),
        (
            "  podSelector: {matchExpressions: [{key: a, operator: In}]}\n",
            "5 spec.podSelector.matchExpressions[0].operator: In and NotIn need at least one of values",
        ),
        (
            "  podSelector: {matchLabels: {'a b': c}}\n",
            "5 spec.podSelector.matchLabels.a b: found \"a b\" as a label key, expected [prefix/]name of at most 63 letters, digits, '-', '_' and '.'",
        ),
    ];
    for (spec, expected) in cases {
        let told = say(&kubernetes(spec));
        assert_eq!(
            told.first().map(String::as_str),
            Some(format!("rule1.yaml:{expected}").as_str()),
            "{told:#?}"
        );
    }
}

#[test]
fn nothing_is_said_twice() {
    says(
        &kubernetes("  podSelector: {}\n  egress: 5\n"),
        &["rule1.yaml:6 spec.egress: found \"5\", expected a list"],
    );
}

#[test]
fn errors_outside_of_spec() {
    says("a: [\n", &["rule1.yaml:1 no valid YAML: unclosed bracket '['"]);
    says("just text\n", &["rule1.yaml:1 found \"just text\", expected a mapping"]);
    says("apiVersion: v1\n", &["rule1.yaml:1 expected an object with apiVersion and kind"]);
    says(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolcy\nmetadata: {name: a}\n",
        &["rule1.yaml:2 kind: found \"CiliumNetworkPolcy\", did you mean CiliumNetworkPolicy"],
    );
    says(
        "apiVersion: networking.k8s.io/v1beta1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}}\n",
        &[
            "rule1.yaml:1 apiVersion: found \"networking.k8s.io/v1beta1\", expected networking.k8s.io/v1 for NetworkPolicy",
        ],
    );
    says(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: Default}\n",
        &[
            "rule1.yaml:3 metadata.name: found \"Default\", expected a name of lower-case letters, digits, '-' and '.', at most 253 long",
        ],
    );
    says(
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: a, namespace: b}\nspec: {endpointSelector: {}, ingress: [{}]}\n",
        &[
            "rule1.yaml:3 metadata.namespace: a CiliumClusterwideNetworkPolicy has no namespace; leave the field out",
        ],
    );
    says(
        "apiVersion: ferromesh.io/v1alpha1\nkind: Node\nmetadata: {name: a}\nspec: {adresses: [{address: x}]}\n",
        &["rule1.yaml:4 spec.adresses: unknown, did you mean addresses"],
    );
    says(
        "apiVersion: ferromesh.io/v1alpha1\nkind: Workload\nmetadata: {name: a, labels: {io.kubernetes.pod.namespace: b}}\nspec: {ports: [{name: http, port: 70000}]}\n",
        &[
            "rule1.yaml:3 metadata: label io.kubernetes.pod.namespace: derived from namespace and service account; leave it out",
            "rule1.yaml:4 spec.ports[0].port: found \"70000\", expected 1-65535",
        ],
    );
    says("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {replicas: 1}\n", &[]);
    says("\u{0}", &["rule1.yaml:1 no valid YAML: unexpected character: `\\u{0}'"]);
}

#[test]
fn what_has_no_enforcer_yet_is_valid_and_warned_of() {
    let layer7 = "  egress:\n  - toPorts:\n    - ports: [{port: \"53\", protocol: ANY}]\n      rules: {dns: [{matchPattern: \"*\"}]}\n";
    says(
        &cilium(layer7),
        &[
            "rule1.yaml:9 spec.egress[0].toPorts[0].rules: needs what the layer-7 proxy of this version cannot do: what it would allow is denied",
        ],
    );
}

/// A policy with these HTTP rules.
fn http(rules: &str) -> String {
    cilium(&format!(
        "  ingress:\n  - toPorts:\n    - ports: [{{port: \"80\", protocol: TCP}}]\n      rules: {{http: {rules}}}\n"
    ))
}

#[test]
fn what_cilium_takes_as_http_rules_is_taken() {
    for rules in [
        "[{}]",
        "[{method: POST, path: /v1/request-landing}]",
        "[{method: 'GET|HEAD', path: '/v[0-9]+/.*\\?x=(1|2)', host: '[a-z]+\\.example(:80)?'}]",
        "[{path: '', method: ''}]",
        "[{method: '(?i)get'}, {method: '.*'}, {method: 'PURGE|M-SEARCH'}, {method: '[A-Z]+'}]",
        "[{headers: [X-Has-Pass, 'X-My-Header: true', 'X-Other 1']}]",
        "[{headers: [X-Id, 'X-Id: a', 'x-id: a'], headerMatches: [{name: X-ID, value: a}]}, {headers: ['X-Id: b']}]",
        "[{headerMatches: [{name: X-Id, value: a}, {name: X-Id, value: b, mismatch: REPLACE}, {name: a, mismatch: LOG}]}]",
    ] {
        says(&http(rules), &[]);
    }
}

/// What one object may have is counted over all of it, and by the function that the proxy counts by.
#[test]
fn more_http_rules_than_one_object_may_have_are_refused_at_the_first_that_is_too_much() {
    let list =
        |rules: &mut dyn Iterator<Item = String>| format!("[{}]", rules.collect::<Vec<_>>().join(", "));
    let paths = |count: u32| list(&mut (0..count).map(|number| format!("{{path: '/v1/resource-{number}'}}")));
    says(&http(&paths(10_000)), &[]);
    let at = "rule1.yaml:9 spec.ingress[0].toPorts[0].rules.http";
    let most = "with the expressions and headers before it, it takes more than one object may have (10000 of them, 8 MiB compiled); \
                repeat less in them, or write fewer";
    says(&http(&paths(12_000)), &[&format!("{at}[10000].path: {most}")]);
    let hard = list(&mut (0..90).map(|number| format!("{{path: '/(a|b)*a(a|b){{11}}{number}'}}")));
    let text = http(&hard);
    let found = say(&text);
    assert!(found.len() == 1 && found[0].contains("8 MiB compiled"), "{found:?}");
    let many = list(&mut (0..20_001).map(|_| "{}".to_owned()));
    says(
        &http(&many),
        &[&format!("{at}: with these, 20001 rules in one object, at most 20000 can be used; write several")],
    );
}

#[test]
fn headers_are_counted_as_expressions_are() {
    let list =
        |rules: &mut dyn Iterator<Item = String>| format!("[{}]", rules.collect::<Vec<_>>().join(", "));
    let rules = |count: u32| http(&list(&mut (0..count).map(|number| format!("{{headers: [x-{number}]}}"))));
    says(&rules(10_000), &[]);
    let found = say(&rules(12_000));
    let [one] = found.as_slice() else { panic!("{found:?}") };
    assert!(
        one.contains(".rules.http[10000].headers[0]: with the expressions and headers before it"),
        "{one}"
    );
}

/// However few there are: where others hold beside them at many ranges they count for each.
#[test]
fn rules_at_many_ranges_of_ports_have_a_bound() {
    let wide = (0..2000).map(|number| format!("{{path: /{number}}}")).collect::<Vec<_>>().join(", ");
    let with = |ports: u32, rules: &str| {
        let narrow = (0..ports).map(|number| {
            format!(
                "  - fromEndpoints: [{{matchLabels: {{a: b}}}}]\n    toPorts:\n    - ports: [{{port: \"{}\", protocol: TCP}}]\n{rules}",
                100 + 2 * number
            )
        });
        let wide = format!(
            "  ingress:\n  - toPorts:\n    - ports: [{{port: \"1\", endPort: 65535, protocol: TCP}}]\n      rules: {{http: [{wide}]}}\n"
        );
        cilium(&(wide + &narrow.collect::<String>()))
    };
    let own = "      rules: {http: [{path: /own}]}\n";
    says(&with(45, own), &[]);
    let found = say(&with(55, own));
    let why = "spec.ingress: with these, rules that come to more than 100000 at all ranges of ports together \
               (alternatives and headers are counted, and lists for each range where others hold beside them); \
               name fewer ranges, or fewer rules for many ports";
    assert!(found.len() == 1 && found[0].ends_with(why), "{found:?}");
}

#[test]
fn paths_that_no_request_can_have_are_warned_of() {
    for (path, why) in [
        ("/a%2fb", "escapes are written in capitals (%2F) before they are judged"),
        ("//x", "// is made / before it is judged"),
        ("/a/[.]\\./b", "/./ and /../ are resolved before they are judged"),
        ("v1/.*", "it does not begin with /"),
    ] {
        let warning =
            format!("rule1.yaml:9 spec.ingress[0].toPorts[0].rules.http[0].path: no path matches it: {why}");
        says(&http(&format!("[{{path: '{path}'}}]")), &[&warning]);
    }
    says(&http("[{path: '/a%2Fb'}, {path: '.*'}]"), &[]);
}

#[test]
fn methods_that_nobody_knows_are_warned_of() {
    for (method, why) in [
        ("POTS", "did you mean POST"),
        ("get", "did you mean GET"),
        ("PROPFINDS", "did you mean PROPFIND"),
        ("[a-z]+", "only requests with a method of their own pass by it"),
    ] {
        let warning = format!(
            "rule1.yaml:9 spec.ingress[0].toPorts[0].rules.http[0].method: no known method matches it, and capitals count; {why}"
        );
        says(&http(&format!("[{{method: '{method}'}}]")), &[&warning]);
    }
}

#[test]
fn http_rules_that_no_request_could_match_are_refused_with_field_and_reason() {
    let at = "rule1.yaml:9 spec.ingress[0].toPorts[0].rules.http";
    let long = "A".repeat(33);
    for method in ["GET POST", "GET, POST", "/v1", "A{33}", &long] {
        let why = "no method matches it: one has 1 to 32 letters, digits or !#$%&'*+-.^_`|~; several are written GET|POST";
        says(&http(&format!("[{{}}, {{method: '{method}'}}]")), &[&format!("{at}[1].method: {why}")]);
    }
    for (rule, field) in [
        ("{headers: ['X-Id: a', 'x-id: b']}", "headers[1]"),
        ("{headers: ['X-Id: a'], headerMatches: [{name: X-ID, value: b}]}", "headerMatches[0]"),
        (
            "{headerMatches: [{name: x-id, value: a}, {name: x-id, value: c, mismatch: LOG}, {name: x-id, value: b}]}",
            "headerMatches[2]",
        ),
    ] {
        let why = "found \"b\", but the same rule asks for \"a\": every line of x-id must have the value, so that no request matches both; write two rules";
        says(&http(&format!("[{{}}, {rule}]")), &[&format!("{at}[1].{field}: {why}")]);
    }
}

#[test]
fn http_rules_for_the_node_itself_are_warned_of() {
    let rule = |entities: &str| {
        cilium(&format!(
            "  egress:\n  - toEntities: {entities}\n    toPorts:\n    - ports: [{{port: \"80\", protocol: TCP}}]\n      rules: {{http: [{{}}]}}\n"
        ))
    };
    let warning = "rule1.yaml:7 spec.egress[0].toEntities: what goes by way of the layer-7 proxy cannot be the node itself (host): connections to it are refused; name its ports in a rule without http, serverNames and contexts of TLS";
    says(&rule("[host]"), &[warning]);
    says(&rule("[world, host]"), &[warning]);
    says(&rule("[all]"), &[]);
    says(&rule("[remote-node]"), &[]);
}

#[test]
fn http_rules_that_could_not_be_enforced_are_refused_with_field_and_reason() {
    let at = "rule1.yaml:9 spec.ingress[0].toPorts[0].rules.http";
    let large = format!("[{{path: '{}'}}]", "(a{200}b){200}");
    let long = format!("[{{path: '{}'}}]", "a".repeat(5000));
    for (rules, message) in [
        ("[]", ": empty, so that it restricts nothing; [{}] lets every request through by way of the proxy"),
        ("[{path: '/v1/(a'}]", "[0].path: no regular expression: unclosed group"),
        ("[{path: 'a)|(b'}]", "[0].path: no regular expression: unopened group"),
        (
            "[{host: 'a(?=b)'}]",
            "[0].host: no regular expression: look-around, including look-ahead and look-behind, is not supported",
        ),
        (
            &large,
            "[0].path: an expression that takes more than 512 KiB when compiled; repeat less in it, or write several rules",
        ),
        (&long, "[0].path: an expression of 5000 bytes, at most 4096 are read; write several rules"),
        ("[{}, {methods: GET}]", "[1].methods: unknown, did you mean method"),
        (
            "[{headers: ['X Y: Z:', ':path']}]",
            "[0].headers[1]: found \":path\", expected the name of a header: letters, digits and -",
        ),
        (
            "[{headerMatches: [{name: X-A, secret: {name: s}}]}]",
            "[0].headerMatches[0].secret: values of headers are written in the rule, not kept in Secrets; write value, which whoever reads this object then sees",
        ),
        (
            "[{headerMatches: [{value: a}]}]",
            "[0].headerMatches[0].name: missing, expected the name of a header",
        ),
        (
            "[{headerMatches: [{name: a, value: b, mismatch: REPLAC}]}]",
            "[0].headerMatches[0].mismatch: found \"REPLAC\", did you mean REPLACE",
        ),
        (
            "[{headerMatches: [{name: a, mismatch: ADD}]}]",
            "[0].headerMatches[0].mismatch: needs a value: without one there is nothing that could mismatch",
        ),
        (
            "[{headerMatches: [{name: Host, value: b, mismatch: ADD}]}]",
            "[0].headerMatches[0].mismatch: host says what is requested and of whom; LOG is all that can be",
        ),
        (
            "[{headerMatches: [{name: a, value: \"b\\nc: d\"}]}]",
            "[0].headerMatches[0].value: found \"b\\nc: d\", expected the value of a header: one line, without spaces around it",
        ),
    ] {
        says(&http(rules), &[&format!("{at}{message}")]);
    }
}

/// A policy with these fields beside a port.
fn tls(port: &str, fields: &str) -> String {
    cilium(&format!("  egress:\n  - toPorts:\n    - ports: [{{port: \"443\"{port}}}]\n{fields}"))
}

#[test]
fn what_cilium_takes_as_server_names_is_taken() {
    for names in [
        "[www.example.com]",
        "['*']",
        "['**']",
        "[WWW.Example.com, '*.example.com', '**.example.com', 'api.*-prod.example.com', '*example.com']",
        "[_sip.example_1.com, localhost]",
    ] {
        says(&tls(", protocol: TCP", &format!("      serverNames: {names}\n")), &[]);
        says(&tls("", &format!("      serverNames: {names}\n")), &[]);
    }
}

#[test]
fn server_names_that_could_not_be_enforced_are_refused_with_field_and_fix() {
    let at = "rule1.yaml:9 spec.egress[0].toPorts[0].serverNames";
    let names = |names: &str| tls(", protocol: TCP", &format!("      serverNames: {names}\n"));
    let many = format!("[{}]", (0..4097).map(|n| format!("a{n}.example")).collect::<Vec<_>>().join(", "));
    let tried = format!("[{}]", (0..129).map(|n| format!("a{n}-*.example")).collect::<Vec<_>>().join(", "));
    for (list, message) in [
        ("[]", ": found an empty list, expected at least one name (\"*\" is every name)"),
        ("['']", "[0]: \"\": empty; write a name such as www.example.com, or \"*\" for every name"),
        ("[a.example, 1.5]", "[1]: found 1.5, expected a string: write \"1.5\""),
        ("[example.com.]", "[0]: \"example.com.\": a dot at the end, which TLS does not send; leave it out"),
        (
            "[a.example, 10.0.0.1]",
            "[1]: \"10.0.0.1\": an address, and TLS names servers by name alone; use toCIDR",
        ),
        ("[a..example]", "[0]: \"a..example\": nothing between two dots, or before the first"),
        (
            "['***.example.com']",
            "[0]: \"***.example.com\": ** stands for whole labels and for nothing within one: write **.example.com or *.example.com",
        ),
        (
            "['https://example.com']",
            "[0]: \"https://example.com\": a character that names of servers do not have; they have letters, digits, - and _",
        ),
        ("[a.example, A.example]", "[1]: \"A.example\" is there twice; leave one out"),
        (&many, ": found 4097 names, at most 4096 fit one item of toPorts; write two"),
        (
            &tried,
            ": found 129 names with a * elsewhere than as their first part, at most 128 fit one item of toPorts; write **.example.com or *.example.com where that says it, or two items",
        ),
    ] {
        says(&names(list), &[&format!("{at}{message}")]);
    }
    let udp = tls(", protocol: UDP", "      serverNames: [a.example]\n");
    says(&udp, &[&format!("{at}: names are said in TLS, over TCP: write protocol: TCP beside the port")]);
    let rules = "      serverNames: [a.example]\n      rules: {http: [{}]}\n";
    let beside = "cannot stand beside rules without terminatingTLS: the proxy sees no request inside TLS; write an item of toPorts for each";
    says(&tls(", protocol: TCP", rules), &[&format!("{at}: {beside}")]);
}

#[test]
fn rules_that_a_missing_default_deny_makes_idle_are_warned_of() {
    let open = http("[{method: GET}]") + "  enableDefaultDeny: {ingress: false}\n";
    let idle = "rule1.yaml:10 spec.enableDefaultDeny.ingress: rules.http restricts nothing then, unless another policy denies by default: every request is allowed";
    says(&open, &[idle]);
    let names = tls("", "      serverNames: [a.example]\n") + "  enableDefaultDeny: {egress: false}\n";
    let idle = "rule1.yaml:10 spec.enableDefaultDeny.egress: serverNames restrict nothing then, unless another policy denies by default: every connection is allowed";
    says(&names, &[idle]);
}

#[test]
fn objects_of_envoy_are_refused_and_told_what_to_write_instead() {
    let envoy =
        |kind: &str| format!("apiVersion: cilium.io/v2\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{}}\n");
    let instead = "rule1.yaml:2 kind: there is no Envoy to configure; write rules.http in a";
    for (kind, policy) in [
        ("CiliumEnvoyConfig", "CiliumNetworkPolicy"),
        ("CiliumClusterwideEnvoyConfig", "CiliumClusterwideNetworkPolicy"),
    ] {
        says(&envoy(kind), &[&format!("{instead} {policy}, which the node's L7 proxy enforces")]);
    }
}

#[test]
fn who_cannot_authenticate_is_warned_of_where_it_is_required() {
    let required =
        |peers: &str| cilium(&format!("  ingress:\n  - {peers}\n    authentication: {{mode: required}}\n"));
    for peers in
        ["fromEntities: [cluster]", "fromEntities: [all]", "fromEndpoints: [{}]", "fromEntities: [host]"]
    {
        says(&required(peers), &[]);
    }
    let warned = "rule1.yaml:8 spec.ingress[0].authentication: only workloads can authenticate, and";
    let denied = "is none: what the rule would allow there is denied";
    for (peers, named) in [
        ("fromEntities: [world, host, remote-node, kube-apiserver]", "world, remote-node, kube-apiserver"),
        ("fromCIDR: [10.0.0.0/8, 2001:db8::/32]", "10.0.0.0/8, 2001:db8::/32"),
        ("fromEndpoints: [{matchLabels: {reserved:remote-node: ''}}, {}]", "reserved:remote-node"),
    ] {
        says(&required(peers), &[&format!("{warned} {named} {denied}")]);
    }
    let egress = "  egress:\n  - toEntities: [host]\n    authentication: {mode: required}\n";
    says(&cilium(egress), &[&format!("{} host {denied}", warned.replace("ingress", "egress"))]);
}

#[test]
fn modes_of_authentication_other_than_required_are_told_what_they_mean() {
    let mode = |mode: &str| {
        cilium(&format!("  ingress:\n  - fromEntities: [cluster]\n    authentication: {{mode: {mode}}}\n"))
    };
    says(&mode("disabled"), &[]);
    says(
        &mode("test-always-fail"),
        &[
            "rule1.yaml:8 spec.ingress[0].authentication: test-always-fail: authentication of every peer fails, so the rule allows nobody",
        ],
    );
}

#[test]
fn a_broken_document_does_not_hide_the_others() {
    let good = cilium("  ingress: [{}]\n");
    let two =
        format!("{}---\n{good}---\nx: ]\n---\n{}", cilium("  ingress: 1\n"), good.replace("rule1", "rule2"));
    let told = say(&two);
    assert_eq!(told.len(), 3, "{told:#?}");
    assert!(told[0].starts_with("rule1.yaml:6 spec.ingress: found \"1\""), "{told:#?}");
    assert!(
        told.iter().any(|line| line.contains("CiliumNetworkPolicy default/rule1 is already given")),
        "{told:#?}"
    );
    assert!(told.iter().any(|line| line.contains("no valid YAML")), "{told:#?}");
}
