use super::{frontends, said, service};
use crate::plan::tests::Bench;
use crate::status;

#[test]
fn two_services_that_claim_an_address_are_told_apart() {
    let port = "ports: [{port: 80}]";
    let both = |first: &str, second: &str| {
        [service("a", &format!("{first}{port}")), service("b", &format!("{second}{port}"))].concat()
    };
    let claimed = "clusterIP: 10.218.0.1, ";
    let refused = |other: &str| {
        format!(
            "not in force: spec.clusterIP: 10.218.0.1 is default/{other}'s, which keeps it; name another, or leave the field out; not served"
        )
    };
    let bench = Bench::new(&both(claimed, claimed), &[]);
    assert_eq!(frontends(&bench), ["10.218.0.1:80/TCP a -> "], "the first by name");
    assert_eq!(said(&bench)["Service default/b"], refused("a"));
    assert_eq!(status::invalid(&bench.world, &bench.planned), 1);
    assert!(!bench.planned.plan.services.names.keys().any(|name| name.name == "b"), "no name leads to it");

    let mut bench = Bench::new(&service("b", &format!("{claimed}{port}")), &[]);
    bench.edit(&both(claimed, claimed));
    assert_eq!(frontends(&bench), ["10.218.0.1:80/TCP b -> "], "the one that had it");
    assert_eq!(said(&bench)["Service default/a"], refused("b"));
    bench.edit(&both(claimed, ""));
    assert_eq!(
        frontends(&bench),
        ["10.218.0.1:80/TCP b -> "],
        "it keeps its address when it no longer names it"
    );
    bench.edit(&both(claimed, "clusterIP: 10.96.0.1, "));
    assert_eq!(frontends(&bench), ["10.96.0.1:80/TCP b -> ", "10.218.0.1:80/TCP a -> "], "given up");
}

#[test]
fn explicit_addresses_go_before_allocated_ones() {
    let yaml =
        [service("a", "ports: [{port: 80}]"), service("z", "clusterIP: 10.218.0.1, ports: [{port: 80}]")];
    let bench = Bench::new(&yaml.concat(), &[]);
    assert_eq!(frontends(&bench), ["10.218.0.1:80/TCP z -> ", "10.218.0.2:80/TCP a -> "]);
}

#[test]
fn addresses_of_workloads_and_nodes_are_no_services() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node2}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.2}]}\n---\n";
    let of = |address: &str| service("x", &format!("clusterIP: '{address}', ports: [{{port: 80}}]"));
    for (address, fault) in [
        ("10.217.9.9", "10.217.9.9 is in the pool of workloads, 10.217.0.0/16"),
        ("fd00:217::99", "fd00:217::99 is in the pool of workloads, fd00:217::/64"),
        ("192.0.2.1", "192.0.2.1 is a node's"),
        ("2001:db8::1", "2001:db8::1 is a node's"),
        ("192.0.2.2", "192.0.2.2 is a node's"),
    ] {
        let good = service("good", "ports: [{port: 80}]");
        let bench = Bench::new(&[of(address), good, node.to_owned()].concat(), &[]);
        assert_eq!(frontends(&bench), ["10.218.0.1:80/TCP good -> "], "the other is unharmed");
        let message = &said(&bench)["Service default/x"];
        assert_eq!(
            *message,
            format!(
                "not in force: spec.clusterIP: {fault}; name another, or leave the field out; not served"
            )
        );
    }
}

#[test]
fn an_exhausted_pool_is_the_status_of_those_who_get_nothing() {
    let settings = "apiVersion: ferromesh.io/v1alpha1\nkind: Configuration\nspec: {ipv4ServicePool: 10.218.0.0/29}\n---\n";
    let services: Vec<_> = (0..9).map(|n| service(&format!("s{n}"), "ports: [{port: 80}]")).collect();
    let explicit = service("s9", "clusterIP: 10.96.0.1, ports: [{port: 80}]");
    let six = service("six", "ipFamilies: [IPv6], ports: [{port: 80}]");
    let bench = Bench::new(&[settings.to_owned(), services.concat(), explicit, six].concat(), &[]);
    assert_eq!(frontends(&bench).len(), 6 + 1 + 1);
    let said = said(&bench);
    assert_eq!(said.keys().filter(|key| said[*key].starts_with("not in force")).count(), 3);
    assert_eq!(
        said["Service default/s8"],
        "not in force: spec.clusterIP: every address of ipv4ServicePool 10.218.0.0/29 is in use; enlarge it, or name an address; not served"
    );
}

#[test]
fn addresses_are_kept_while_services_come_and_go() {
    let all: Vec<_> = ["a", "b", "c"].map(|name| service(name, "ports: [{port: 80}]")).to_vec();
    let mut bench = Bench::new(&all.concat(), &[]);
    bench.edit(&[all[2].as_str(), all[0].as_str()].concat());
    assert_eq!(frontends(&bench), ["10.218.0.1:80/TCP a -> ", "10.218.0.3:80/TCP c -> "]);
    bench.edit(&[all.concat(), service("d", "ports: [{port: 80}]")].concat());
    assert_eq!(frontends(&bench)[1], "10.218.0.2:80/TCP b -> ", "kept for who comes back");
    assert_eq!(frontends(&bench)[3], "10.218.0.4:80/TCP d -> ");
    let dual = all[0].replace("ports:", "ipFamilyPolicy: PreferDualStack, ports:");
    bench.edit(&dual);
    assert_eq!(
        frontends(&bench),
        ["10.218.0.1:80/TCP a -> ", "[fd00:218::1]:80/TCP a -> "],
        "a second family does not cost it the first"
    );
}
