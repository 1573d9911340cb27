use mesh::policy::protocol::{TCP, UDP};

use crate::plan::tests::Bench;
use crate::status;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: db, namespace: data, labels: {tier: store}}
spec: {selector: {app: db}, ports: [{port: 5432, targetPort: 6432}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, labels: {tier: store}}
spec: {ports: [{port: 443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: outside-4, labels: {kubernetes.io/service-name: outside}}
addressType: IPv4
endpoints: [{addresses: [198.51.100.7]}, {addresses: [10.217.0.4]}]
ports: [{port: 443}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: outside-6, labels: {kubernetes.io/service-name: outside}}
addressType: IPv6
endpoints: [{addresses: ['2001:db8:f::7']}]
ports: [{port: 443}]
---
apiVersion: v1
kind: Service
metadata: {name: away}
spec: {type: ExternalName, externalName: example.org}
---
";

const WORKLOADS: [&str; 5] = [
    "default/client=app=client",
    "data/db=app=db",
    "default/db=app=db",
    "default/proxy=app=proxy",
    "default/other=app=other",
];

fn policy(egress: &str) -> String {
    format!(
        "{SERVICES}apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: client}}\nspec: {{endpointSelector: {{matchLabels: {{app: client}}}}, {egress}}}\n"
    )
}

/// Whom the client reaches on TCP 443: the workloads in order, two addresses of the slices and one that is in none.
fn reached(bench: &Bench) -> Vec<&'static str> {
    let all = [
        "data/db",
        "default/db",
        "default/proxy",
        "default/other",
        "198.51.100.7",
        "2001:db8:f::7",
        "198.51.100.8",
    ];
    all.into_iter().filter(|to| bench.allows("default/client", to, TCP, 443)).collect()
}

#[test]
fn a_service_is_whoever_answers_for_it() {
    let cases: [(&str, &[&str]); 8] = [
        ("{k8sService: {serviceName: db, namespace: data}}", &["data/db"]),
        ("{k8sService: {serviceName: outside}}", &["default/proxy", "198.51.100.7", "2001:db8:f::7"]),
        (
            "{k8sServiceSelector: {selector: {matchLabels: {tier: store}}}}",
            &["data/db", "default/proxy", "198.51.100.7", "2001:db8:f::7"],
        ),
        ("{k8sServiceSelector: {selector: {matchLabels: {tier: store}}, namespace: data}}", &["data/db"]),
        (
            "{k8sService: {serviceName: outside}, k8sServiceSelector: {selector: {matchLabels: {tier: other}}}}",
            &[],
        ),
        ("{k8sService: {serviceName: db}}", &[]),
        ("{k8sService: {serviceName: away}}", &[]),
        (
            "{k8sService: {serviceName: outside}}, {k8sService: {serviceName: db, namespace: data}}",
            &["data/db", "default/proxy", "198.51.100.7", "2001:db8:f::7"],
        ),
    ];
    for (services, expected) in cases {
        let bench = Bench::new(&policy(&format!("egress: [{{toServices: [{services}]}}]")), &WORKLOADS);
        assert_eq!(reached(&bench), expected, "{services}");
    }
}

#[test]
fn ports_beside_it_are_those_of_who_answers() {
    let to = |port: u16| {
        policy(&format!(
            "egress: [{{toServices: [{{k8sService: {{serviceName: db, namespace: data}}}}], toPorts: [{{ports: [{{port: '{port}', protocol: TCP}}]}}]}}]"
        ))
    };
    let bench = Bench::new(&to(6432), &WORKLOADS);
    assert!(bench.allows("default/client", "data/db", TCP, 6432));
    assert!(!bench.allows("default/client", "data/db", UDP, 6432));
    assert!(!bench.allows("default/client", "data/db", TCP, 5432));
    let bench = Bench::new(&to(5432), &WORKLOADS);
    assert!(!bench.allows("default/client", "data/db", TCP, 6432), "the service's own port is never seen");
}

#[test]
fn denials_by_service_win_over_what_allows() {
    let bench = Bench::new(
        &policy(
            "egress: [{toEntities: [all]}], egressDeny: [{toServices: [{k8sService: {serviceName: outside}}]}]",
        ),
        &WORKLOADS,
    );
    assert_eq!(reached(&bench), ["data/db", "default/db", "default/other", "198.51.100.8"]);
}

#[test]
fn who_answers_may_change_under_a_policy() {
    let yaml = policy("egress: [{toServices: [{k8sService: {serviceName: outside}}]}]");
    let mut bench = Bench::new(&yaml, &WORKLOADS);
    bench.edit(&yaml.replace("198.51.100.7", "198.51.100.8"));
    assert_eq!(reached(&bench), ["default/proxy", "2001:db8:f::7", "198.51.100.8"]);
    bench.edit(
        &yaml.replace("{name: outside, labels: {tier: store}}", "{name: inside, labels: {tier: store}}"),
    );
    assert_eq!(reached(&bench), Vec::<&str>::new(), "nobody, not everybody");
}

#[test]
fn a_service_that_is_not_there_selects_nobody_and_is_warned_of() {
    let message = |egress: &str| {
        let bench = Bench::new(&policy(egress), &WORKLOADS);
        let rows = status::policies(&bench.world, &bench.planned);
        rows.into_iter().find(|row| row.policy.is_some()).map(|row| (row.valid, row.message)).unwrap()
    };
    let (valid, said) = message("egress: [{toServices: [{k8sService: {serviceName: outsied}}]}]");
    assert!(valid, "it is in force: it isolates");
    assert_eq!(
        said,
        "Policy validation succeeded; toServices: default/outsied names no Service: allows nothing by it"
    );
    let (_, said) = message(
        "egress: [{}], egressDeny: [{toServices: [{k8sServiceSelector: {selector: {matchLabels: {a: b}}, namespace: x}}]}]",
    );
    assert_eq!(
        said,
        "Policy validation succeeded; toServices: k8sServiceSelector in x names no Service: denies nothing by it"
    );
}
