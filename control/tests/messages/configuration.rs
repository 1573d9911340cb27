use std::fs;

use super::say;

#[test]
fn errors_of_the_configuration() {
    let of = |spec: &str| {
        say(&format!("apiVersion: ferromesh.io/v1alpha1\nkind: Configuration\nspec: {{{spec}}}\n"))
    };
    let cases = [
        ("ipv4Pol: 10.0.0.0/8", "spec.ipv4Pol: unknown, did you mean ipv4Pool"),
        (
            "ipv4Pool: 10.0.0.1/8",
            "spec.ipv4Pool: found 10.0.0.1/8, expected a prefix of length 8 to 29 without host bits",
        ),
        ("ipv6Pool: fe80::/64", "spec.ipv6Pool: found fe80::/64, expected addresses that can be routed"),
        ("mtu: 900", "spec.mtu: found \"900\", expected 1280-65535"),
        ("policyAuditMode: maybe", "spec.policyAuditMode: found \"maybe\", expected true or false"),
        (
            "policyEnforcementMode: Always",
            "spec.policyEnforcementMode: found \"Always\", did you mean always",
        ),
        (
            "metricsAddress: 9962",
            "spec.metricsAddress: found \"9962\", expected address:port such as 127.0.0.1:9962",
        ),
        ("cgroupRoot: cgroup", "spec.cgroupRoot: found \"cgroup\", expected an absolute path"),
        ("cgroupRoot: /a/../b", "spec.cgroupRoot: found \"/a/../b\", expected a path without .."),
        (
            "cgroupRoot: /sys/fs/cgroup/mesh, serviceCgroup: /sys/fs/cgroup/mes",
            "spec.serviceCgroup: found /sys/fs/cgroup/mes, expected cgroupRoot (/sys/fs/cgroup/mesh) or a directory above it",
        ),
        (
            "serviceCgroup: /sys/fs/cgroup",
            "spec.serviceCgroup: goes with cgroupRoot, which is missing: write the directory of the workloads' cgroups, at this or below it",
        ),
        (
            "ipv4ServicePool: 10.217.4.0/24",
            "spec.ipv4ServicePool: found 10.217.4.0/24, which overlaps ipv4Pool 10.217.0.0/16; choose another prefix",
        ),
        (
            "ipv6Pool: 'fd00:218::/64'",
            "spec.ipv6Pool: found fd00:218::/64, which overlaps ipv6ServicePool fd00:218::/108; set ipv6ServicePool to another prefix",
        ),
        (
            "accessLog: {path: access.log}",
            "spec.accessLog.path: found \"access.log\", expected an absolute path",
        ),
        (
            "accessLog: {format: json}",
            "spec.accessLog: path is missing: the file it is written to, or /dev/stdout",
        ),
        (
            "accessLog: {path: /dev/stdout, format: text, text: '%START_TIME% %UPSTREAM_CLUSTER%'}",
            "spec.accessLog.text: at character 14: %UPSTREAM_CLUSTER% is not known; docs/l7-proxy.md lists those that are",
        ),
        (
            "accessLog: {path: /dev/stdout, json: {a: '%REQ%'}}",
            "spec.accessLog.json.a: at character 1: %REQ% needs a header: %REQ(USER-AGENT)%",
        ),
        (
            "accessLog: {path: /dev/stdout, text: '%PROTOCOL%'}",
            "spec.accessLog.text: goes with format: text, and format is json; leave one out",
        ),
        (
            "accessLog: {path: /dev/stdout, format: xml}",
            "spec.accessLog.format: found \"xml\", expected json or text",
        ),
        ("requestId: always", "spec.requestId: found \"always\", expected true or false"),
        ("ipv6Masquerade: 'yes'", "spec.ipv6Masquerade: found \"yes\", expected true or false"),
        (
            "masqueradePorts: 1000-2000",
            "spec.masqueradePorts: found \"1000-2000\", expected first-last within 1024-65535, such as 49152-65535",
        ),
        (
            "masqueradePorts: 3000-2000",
            "spec.masqueradePorts: found \"3000-2000\", expected first-last within 1024-65535, such as 49152-65535",
        ),
        (
            "masqueradeExceptions: [10.0.0.0/33]",
            "spec.masqueradeExceptions[0]: found \"10.0.0.0/33\", expected an address prefix such as 10.0.0.0/8 or fd00::/8",
        ),
        (
            "devices: [eth0, a/b]",
            "spec.devices[1]: found \"a/b\", expected the name of an interface, such as eth0",
        ),
        (
            "clusterDomain: Cluster.local",
            "spec.clusterDomain: found \"Cluster.local\", expected a name of lower-case letters, digits, '-' and '.', at most 253 long",
        ),
        (
            "dnsUpstreams: [192.0.2.53, dns.example]",
            "spec.dnsUpstreams[1]: found \"dns.example\", expected an address or address:port, such as 192.0.2.53 or [2001:db8::53]:53",
        ),
        ("hostResolver: 1", "spec.hostResolver: found \"1\", expected true or false"),
        (
            "trustDomain: Example.org",
            "spec.trustDomain: found \"Example.org\": a trust domain holds lower-case letters, digits, dots, dashes and underscores only",
        ),
        (
            "authenticationGrace: 1s",
            "spec.authenticationGrace: found \"1s\", expected a duration between 2s and 10m, such as 90s or 1h30m",
        ),
        (
            "authenticationAhead: 100001",
            "spec.authenticationAhead: found \"100001\", expected a number between 0 and 100000",
        ),
        (
            "authenticationAhead: -1",
            "spec.authenticationAhead: found \"-1\", expected a number between 0 and 100000",
        ),
        (
            "authenticationAhead: '020'",
            "spec.authenticationAhead: found \"020\", expected a number between 0 and 100000",
        ),
        (
            "svidLifetime: 90",
            "spec.svidLifetime: found \"90\", expected a duration between 10s and 24h, such as 90s or 1h30m",
        ),
        ("authPort: 0", "spec.authPort: found \"0\", expected 1-65535"),
        ("caListen: 4251", "spec.caListen: found \"4251\", expected address:port such as 127.0.0.1:4251"),
        (
            "caAddress: '192.0.2.1:4251'",
            "spec.caAddress: goes with trustBundleFile, which is missing: the file with the roots that this CA's certificates lead to",
        ),
        (
            "caAddress: '192.0.2.1:4251', trustBundleFile: /etc/roots.pem, svidLifetime: 1h",
            "spec.svidLifetime: is about a CA of this node, and caAddress says that there is none; leave one out",
        ),
        (
            "joinTokenFile: /etc/token",
            "spec.joinTokenFile: goes with caAddress, which is missing: the CA of this node needs no such file",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(of(spec), [format!("rule1.yaml:3 {expected}")]);
    }
}

#[test]
fn settings_of_services_and_of_the_way_out_are_shown_with_their_defaults_and_as_given() {
    let directory = tempfile::tempdir().unwrap();
    let entries = |yaml: &str| {
        let source = directory.path().join("source");
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("node.yaml"), yaml).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let opened = runtime.block_on(async {
            control::source::files::Directory::open(&source, &directory.path().join("state"), None).unwrap()
        });
        let all = opened.world().config_entries();
        assert_eq!(opened.world().invalid(), 0, "{:?}", opened.world().statuses);
        all.into_iter().skip(11).take(11).map(|entry| (entry.key, entry.value)).collect::<Vec<_>>()
    };
    let keys = [
        "serviceCgroup",
        "ipv4ServicePool",
        "ipv6ServicePool",
        "ipv4Masquerade",
        "ipv6Masquerade",
        "masqueradePorts",
        "masqueradeExceptions",
        "devices",
        "clusterDomain",
        "dnsUpstreams",
        "hostResolver",
    ];
    let defaults = [
        "(the cgroup v2 mount)",
        "10.218.0.0/16",
        "fd00:218::/108",
        "true",
        "true",
        "49152-65535",
        "(none)",
        "(of the default routes)",
        "cluster.local",
        "(of the host's resolv.conf)",
        "false",
    ];
    let given = [
        "/sys/fs/cgroup",
        "10.10.0.0/16",
        "fd00:10::/108",
        "true",
        "false",
        "40000-50000",
        "10.0.0.0/8, fd00::1/128",
        "eth0, wlan0",
        "mesh.example",
        "192.0.2.53:53, [2001:db8::53]:5353",
        "true",
    ];
    let pairs = |values: [&str; 11]| -> Vec<_> {
        keys.into_iter().map(str::to_owned).zip(values.map(str::to_owned)).collect()
    };
    assert_eq!(entries("# nothing\n"), pairs(defaults));
    let yaml = "apiVersion: ferromesh.io/v1alpha1\nkind: Configuration\nspec: {cgroupRoot: /sys/fs/cgroup/mesh, serviceCgroup: /sys/fs/cgroup, ipv4ServicePool: 10.10.0.0/16, ipv6ServicePool: 'fd00:10::/108', ipv4Masquerade: true, ipv6Masquerade: false, masqueradePorts: 40000-50000, masqueradeExceptions: [10.0.0.0/8, 'fd00::1'], devices: [eth0, wlan0], clusterDomain: mesh.example, dnsUpstreams: [192.0.2.53, '[2001:db8::53]:5353'], hostResolver: true}\n";
    assert_eq!(entries(yaml), pairs(given));
}

#[test]
fn settings_of_authentication_are_shown_with_their_defaults_and_as_given() {
    let entries = |spec: &str| {
        let directory = tempfile::tempdir().unwrap();
        let yaml = format!("apiVersion: ferromesh.io/v1alpha1\nkind: Configuration\nspec: {{{spec}}}\n");
        fs::write(directory.path().join("node.yaml"), yaml).unwrap();
        let state = tempfile::tempdir().unwrap();
        let world = control::source::files::peek(directory.path(), state.path(), None).unwrap();
        assert_eq!(world.invalid(), 0, "{:?}", world.statuses);
        let rows = world.config_entries().into_iter().skip(22);
        rows.map(|entry| format!("{}={}", entry.key, entry.value)).collect::<Vec<_>>()
    };
    assert_eq!(
        entries(""),
        [
            "trustDomain=cluster.local",
            "authenticationGrace=10s",
            "authenticationAhead=20000",
            "authPort=4250",
            "caListen=127.0.0.1:4251",
            "caAddress=(the CA of this node)",
            "joinTokenFile=(none)",
            "trustBundleFile=(of the CA of this node)",
            "svidLifetime=1h",
            "accessLog=(none)",
            "requestId=false",
        ]
    );
    assert_eq!(
        entries(
            "trustDomain: example.org, authenticationGrace: 1m30s, authenticationAhead: 0, authPort: 5250, caAddress: '[2001:db8::1]:4251', joinTokenFile: /etc/token, trustBundleFile: /etc/roots.pem"
        )[..8],
        [
            "trustDomain=example.org",
            "authenticationGrace=1m30s",
            "authenticationAhead=0",
            "authPort=5250",
            "caListen=127.0.0.1:4251",
            "caAddress=[2001:db8::1]:4251",
            "joinTokenFile=/etc/token",
            "trustBundleFile=/etc/roots.pem",
        ]
    );
    let logged = entries("accessLog: {path: /var/log/access.log, format: text}, requestId: true");
    assert_eq!(logged[9..], ["accessLog=/var/log/access.log (text)", "requestId=true"]);
    assert_eq!(entries("caListen: '0.0.0.0:4300', svidLifetime: 24h")[4..9][..1], ["caListen=0.0.0.0:4300"]);
}
