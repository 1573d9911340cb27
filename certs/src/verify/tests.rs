//! Each line of the X509-SVID standard that a validator must keep, and each certificate that path validation alone
//! takes wrongly (the table in `docs/certificates.md`).

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    SanType,
};

use super::*;
use crate::bundle::{Bundle, Bundles};
use crate::testing::{AS_IS, Change, HOUR, NOW, World, at, domain, id, root};

const LUKE: &str = "spiffe://rebels.example/ns/default/sa/luke";
const VADER: &str = "spiffe://rebels.example/ns/default/sa/vader";

fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

fn verify(world: &World, chain: &[CertificateDer<'_>], expected: &str) -> Result<Verified, VerifyError> {
    verify_chain(chain, &Expected::Id(id(expected)), &world.bundles().load(), at(NOW))
}

/// What comes of Luke's chain with this change to the leaf.
fn changed(change: Change) -> Result<SpiffeId, Refusal> {
    let world = World::new("rebels.example");
    verify(&world, &world.chain(LUKE, change), LUKE)
        .map(|verified| verified.id)
        .map_err(|error| error.refusal())
}

#[test]
fn a_good_chain_proves_its_id_until_its_earliest_end() {
    let world = World::new("rebels.example");
    let verified = verify(&world, &world.chain(LUKE, AS_IS), LUKE).unwrap();
    assert_eq!((verified.id, verified.not_after), (id(LUKE), at(NOW + HOUR)));
    assert!(!verified.serial.is_empty());
    let long: Change = |params| params.not_after += time::Duration::hours(50);
    let verified = verify(&world, &world.chain(LUKE, long), LUKE).unwrap();
    assert_eq!(verified.not_after, at(NOW + 10 * HOUR), "the intermediate ends first");
}

#[test]
fn exactly_one_uri_name_of_whatever_scheme() {
    let cases: [(&str, Change); 5] = [
        ("two SPIFFE IDs", |params| params.subject_alt_names.push(uri(VADER))),
        ("the same twice", |params| params.subject_alt_names.push(uri(LUKE))),
        ("an https URI beside", |params| params.subject_alt_names.push(uri("https://rebels.example/"))),
        ("an https URI alone", |params| params.subject_alt_names = vec![uri("https://rebels.example/")]),
        ("no name at all", |params| params.subject_alt_names.clear()),
    ];
    for (what, change) in cases {
        assert_eq!(changed(change), Err(Refusal::BadCertificate), "{what}");
    }
    assert_eq!(
        changed(|params| params.subject_alt_names = vec![SanType::DnsName("luke".try_into().unwrap())]),
        Err(Refusal::BadCertificate),
        "a DNS name alone"
    );
}

#[test]
fn names_of_other_types_are_allowed_beside_the_id() {
    let others: Change = |params| {
        params.subject_alt_names.insert(0, SanType::DnsName("luke.example".try_into().unwrap()));
        params.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 1].into()));
        params.subject_alt_names.push(SanType::Rfc822Name("luke@rebels.example".try_into().unwrap()));
    };
    assert_eq!(changed(others), Ok(id(LUKE)));
}

#[test]
fn the_uri_must_be_a_canonical_spiffe_id_with_a_path() {
    let cases: [Change; 7] = [
        |params| params.subject_alt_names = vec![uri("spiffe://rebels.example")],
        |params| params.subject_alt_names = vec![uri("spiffe://rebels.example/")],
        |params| params.subject_alt_names = vec![uri("SPIFFE://rebels.example/ns/default/sa/luke")],
        |params| params.subject_alt_names = vec![uri("spiffe://Rebels.Example/ns/default/sa/luke")],
        |params| params.subject_alt_names = vec![uri("spiffe://rebels.example/ns/default/sa/%6cuke")],
        |params| params.subject_alt_names = vec![uri("spiffe://rebels.example/ns/default/sa/luke\0")],
        |params| params.subject_alt_names = vec![uri("spiffe://rebels.example:443/ns/default/sa/luke")],
    ];
    for (index, change) in cases.into_iter().enumerate() {
        assert_eq!(changed(change), Err(Refusal::BadCertificate), "case {index}");
    }
}

/// subjectAltName with one URI of these bytes, which need not be the ASCII that they should be (RFC 5280, 4.2.1.6).
fn raw_uri(name: &[u8]) -> CustomExtension {
    let [outer, inner] = [name.len() + 2, name.len()].map(|length| u8::try_from(length).unwrap());
    let der = [&[0x30, outer, 0x86, inner], name].concat();
    CustomExtension::from_oid_content(&[2, 5, 29, 17], der)
}

#[test]
fn a_uri_that_is_not_ascii_is_no_name_and_counts_as_one() {
    assert_eq!(
        changed(|params| {
            params.subject_alt_names.clear();
            params.custom_extensions.push(raw_uri(LUKE.as_bytes()));
        }),
        Ok(id(LUKE)),
        "the way these certificates are made"
    );
    let cases: [Change; 3] = [
        |params| {
            params.custom_extensions =
                vec![raw_uri("spiffe://rebels.example/ns/default/sa/l\u{fc}ke".as_bytes())]
        },
        |params| params.custom_extensions = vec![raw_uri(b"spiffe://rebels.example/ns/default/sa/luke\xff")],
        |params| {
            params.custom_extensions =
                vec![raw_uri("spiffe://r\u{435}bels.example/ns/default/sa/luke".as_bytes())]
        },
    ];
    for (index, change) in cases.into_iter().enumerate() {
        let world = World::new("rebels.example");
        let (mut params, pair) = unnamed();
        change(&mut params);
        let leaf = params.signed_by(&pair, &world.intermediate.issuer).unwrap().der().clone();
        let chain = [leaf, world.intermediate.der.clone()];
        let refused = verify(&world, &chain, LUKE).unwrap_err();
        assert_eq!(refused.refusal(), Refusal::BadCertificate, "case {index}: {refused}");
        assert!(!refused.to_string().contains("1 URI names"), "case {index}: {refused}");
    }
    // Beside the one that is expected it is a second one, not none.
    let second = [&[0x86, 2][..], b"\xff\xff"].concat();
    let both = [
        &[0x30, 4 + 2 + u8::try_from(LUKE.len()).unwrap(), 0x86, u8::try_from(LUKE.len()).unwrap()],
        LUKE.as_bytes(),
        &second,
    ]
    .concat();
    let world = World::new("rebels.example");
    let (mut params, pair) = unnamed();
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], both)];
    let leaf = params.signed_by(&pair, &world.intermediate.issuer).unwrap().der().clone();
    let refused = verify(&world, &[leaf, world.intermediate.der.clone()], LUKE).unwrap_err();
    assert_eq!(refused, VerifyError::Flaw(Flaw::UriNames(2)));
}

/// A leaf without any name, and its key.
fn unnamed() -> (CertificateParams, rcgen::KeyPair) {
    let mut params = crate::ca::leaf_params(LUKE.to_owned(), at(NOW), at(NOW + HOUR)).unwrap();
    params.subject_alt_names.clear();
    (params, rcgen::KeyPair::generate().unwrap())
}

#[test]
fn an_id_counts_nowhere_but_in_the_uri_name() {
    let cases: [(&str, Change); 3] = [
        ("the common name", |params| {
            params.subject_alt_names.clear();
            params.distinguished_name.push(rcgen::DnType::CommonName, LUKE);
        }),
        ("a DNS name", |params| params.subject_alt_names = vec![SanType::DnsName(LUKE.try_into().unwrap())]),
        ("a mail address", |params| {
            params.subject_alt_names = vec![SanType::Rfc822Name(LUKE.try_into().unwrap())]
        }),
    ];
    for (what, change) in cases {
        assert_eq!(changed(change), Err(Refusal::BadCertificate), "{what}");
    }
    // Nor do they take away from the one that stands where it should.
    let others: Change = |params| {
        params.distinguished_name.push(rcgen::DnType::CommonName, VADER);
        params.subject_alt_names.insert(0, SanType::DnsName(VADER.try_into().unwrap()));
    };
    assert_eq!(changed(others), Ok(id(LUKE)));
}

#[test]
fn an_id_is_no_pattern_and_no_prefix_of_another() {
    let world = World::new("rebels.example");
    let account = |name: &str| world.domain.workload("default", name).unwrap().to_string();
    let [dot, letter, short, long] = ["r2.d2", "r2xd2", "r2", "r2.d2.x"].map(account);
    for (shown, expected) in [(&letter, &dot), (&dot, &letter), (&short, &dot), (&long, &dot), (&dot, &short)]
    {
        let refused = verify(&world, &world.chain(shown, AS_IS), expected).unwrap_err();
        assert_eq!(refused.refusal(), Refusal::WrongId, "{shown} for {expected}");
    }
    assert_eq!(verify(&world, &world.chain(&dot, AS_IS), &dot).unwrap().id, id(&dot));
}

#[test]
fn a_leaf_is_no_ca_and_says_so() {
    assert_eq!(changed(|params| params.is_ca = IsCa::NoCa), Err(Refusal::BadCertificate), "not said");
    let ca: Change = |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(changed(ca), Err(Refusal::BadCertificate));
}

#[test]
fn a_leafs_key_makes_digital_signatures_and_signs_neither_certificates_nor_revocations() {
    let cases: [(&str, Change); 4] = [
        ("no key usage", |params| params.key_usages.clear()),
        ("no digitalSignature", |params| params.key_usages = vec![KeyUsagePurpose::KeyAgreement]),
        ("keyCertSign", |params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ("cRLSign", |params| params.key_usages.push(KeyUsagePurpose::CrlSign)),
    ];
    for (what, change) in cases {
        assert_eq!(changed(change), Err(Refusal::BadCertificate), "{what}");
    }
    let more: Change = |params| params.key_usages.push(KeyUsagePurpose::KeyAgreement);
    assert_eq!(changed(more), Ok(id(LUKE)), "keyAgreement beside is allowed");
}

#[test]
fn an_extended_key_usage_has_both_ends_or_is_missing() {
    assert_eq!(changed(|params| params.extended_key_usages.clear()), Ok(id(LUKE)));
    let one: [Change; 2] = [
        |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
        |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
    ];
    for change in one {
        assert_eq!(changed(change), Err(Refusal::BadCertificate));
    }
}

#[test]
fn a_signing_certificate_never_authenticates() {
    let world = World::new("rebels.example");
    for chain in [vec![world.root.der.clone()], vec![world.intermediate.der.clone()]] {
        let refused = verify(&world, &chain, LUKE).unwrap_err();
        assert_eq!(refused, VerifyError::Flaw(Flaw::IsCa));
    }
}

#[test]
fn an_issuer_without_the_right_to_sign_is_no_issuer() {
    let cases: [(&str, Change); 5] = [
        ("no keyCertSign", |params| params.key_usages = vec![KeyUsagePurpose::CrlSign]),
        ("no key usage", |params| params.key_usages.clear()),
        ("a workload's ID", |params| params.subject_alt_names = vec![uri(VADER)]),
        ("another trust domain's", |params| params.subject_alt_names = vec![uri("spiffe://empire.example")]),
        ("not a CA", |params| params.is_ca = IsCa::ExplicitNoCa),
    ];
    for (what, change) in cases {
        let mut world = World::new("rebels.example");
        world.intermediate = world.root.intermediate(&world.domain, change);
        let refused = verify(&world, &world.chain(LUKE, AS_IS), LUKE).unwrap_err();
        assert_eq!(refused.refusal(), Refusal::Untrusted, "{what}: {refused}");
    }
}

#[test]
fn a_workload_cannot_issue_for_another() {
    let world = World::new("rebels.example");
    let luke = world.intermediate.signing_leaf(LUKE, AS_IS);
    let (forged, _) = luke.leaf(VADER, AS_IS);
    let chain = [forged, luke.der.clone(), world.intermediate.der.clone()];
    assert_eq!(verify(&world, &chain, VADER).unwrap_err().refusal(), Refusal::Untrusted);
}

#[test]
fn the_id_is_the_end_entitys_whatever_is_appended() {
    let world = World::new("rebels.example");
    let [luke, vader] = [LUKE, VADER].map(|id| world.intermediate.leaf(id, AS_IS).0);
    let chain = [vader.clone(), luke.clone(), world.intermediate.der.clone(), luke];
    assert_eq!(verify(&world, &chain, VADER).unwrap().id, id(VADER));
    assert_eq!(verify(&world, &chain, LUKE).unwrap_err().refusal(), Refusal::WrongId);
    let told = verify(&world, &chain, LUKE).unwrap_err().to_string();
    assert_eq!(told, format!("the certificate is {VADER}'s, expected was {LUKE}"));
}

#[test]
fn only_roots_of_the_ids_own_trust_domain_count() {
    let (rebels, empire) = (World::new("rebels.example"), World::new("empire.example"));
    let bundles = Bundles::new(rebels.bundle());
    bundles.replace(empire.bundle());
    let trooper = "spiffe://empire.example/ns/default/sa/trooper";
    let judge = |chain: &[CertificateDer<'_>], expected: &str| {
        verify_chain(chain, &Expected::Id(id(expected)), &bundles.load(), at(NOW)).map_err(|e| e.refusal())
    };
    assert!(judge(&empire.chain(trooper, AS_IS), trooper).is_ok());
    // Both directions, with an intermediate of either name.
    assert_eq!(judge(&rebels.chain(trooper, AS_IS), trooper), Err(Refusal::Untrusted));
    assert_eq!(judge(&empire.chain(LUKE, AS_IS), LUKE), Err(Refusal::Untrusted));
    let posing = empire.root.intermediate(&rebels.domain, AS_IS);
    let forged = [posing.leaf(LUKE, AS_IS).0, posing.der.clone()];
    assert_eq!(judge(&forged, LUKE), Err(Refusal::Untrusted));
}

#[test]
fn a_missing_or_empty_bundle_trusts_nobody() {
    let world = World::new("rebels.example");
    let chain = world.chain(LUKE, AS_IS);
    let judge = |bundles: &Bundles| {
        verify_chain(&chain, &Expected::Id(id(LUKE)), &bundles.load(), at(NOW)).map_err(|e| e.refusal())
    };
    let bundles = Bundles::default();
    assert_eq!(judge(&bundles), Err(Refusal::Untrusted));
    bundles.replace(world.bundle());
    assert!(judge(&bundles).is_ok());
    bundles.replace(Bundle::from_pem(domain("rebels.example"), "").unwrap());
    assert_eq!(judge(&bundles), Err(Refusal::Untrusted));
}

#[test]
fn each_root_of_a_rotation_counts_until_it_is_taken_away() {
    let (old, new) = (World::new("rebels.example"), World::new("rebels.example"));
    let [before, after] = [&old, &new].map(|world| world.chain(LUKE, AS_IS));
    let bundles = old.bundles();
    let judge = |chain: &[CertificateDer<'_>]| {
        verify_chain(chain, &Expected::Id(id(LUKE)), &bundles.load(), at(NOW)).map_err(|e| e.refusal())
    };
    assert_eq!((judge(&before).is_ok(), judge(&after).err()), (true, Some(Refusal::Untrusted)));
    let both = [old.root.der.clone(), new.root.der.clone()];
    bundles.replace(Bundle::new(old.domain.clone(), both).unwrap());
    assert!(judge(&before).is_ok() && judge(&after).is_ok());
    bundles.replace(new.bundle());
    assert_eq!((judge(&before).err(), judge(&after).is_ok()), (Some(Refusal::Untrusted), true));
}

#[test]
fn time_is_kept_to_the_second_by_every_certificate() {
    let world = World::new("rebels.example");
    let judge = |chain: &[CertificateDer<'_>], time| {
        verify_chain(chain, &Expected::Id(id(LUKE)), &world.bundles().load(), at(time))
            .map(drop)
            .map_err(|error| error.refusal())
    };
    let chain = world.chain(LUKE, AS_IS);
    assert_eq!(judge(&chain, NOW - 60), Ok(()), "backdated by a minute");
    assert_eq!(judge(&chain, NOW - 61), Err(Refusal::NotYetValid));
    assert_eq!(judge(&chain, NOW + HOUR), Ok(()));
    assert_eq!(judge(&chain, NOW + HOUR + 1), Err(Refusal::Expired));
    let long: Change = |params| params.not_after += time::Duration::hours(1000);
    let chain = world.chain(LUKE, long);
    assert_eq!(judge(&chain, NOW + 10 * HOUR + 1), Err(Refusal::Expired), "the intermediate");
}

#[test]
fn a_root_counts_no_longer_than_it_says() {
    let mut world = World::new("rebels.example");
    world.root = root(&world.domain, |params| params.not_after -= time::Duration::hours(99));
    world.intermediate = world.root.intermediate(&world.domain, AS_IS);
    let long: Change = |params| params.not_after += time::Duration::hours(5);
    let chain = world.chain(LUKE, long);
    let judge = |time| {
        verify_chain(&chain, &Expected::Id(id(LUKE)), &world.bundles().load(), at(time))
            .map(drop)
            .map_err(|error| error.refusal())
    };
    assert_eq!(judge(NOW + HOUR), Ok(()));
    assert_eq!(judge(NOW + HOUR + 1), Err(Refusal::Untrusted));
}

#[test]
fn path_validation_is_that_of_rfc_5280() {
    let critical: Change = |params| {
        let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        unknown.set_criticality(true);
        params.custom_extensions.push(unknown);
    };
    assert_eq!(changed(critical), Err(Refusal::BadCertificate), "unknown critical extension");

    let world = World::new("rebels.example");
    let mut chain = world.chain(LUKE, AS_IS);
    chain.pop();
    assert_eq!(verify(&world, &chain, LUKE).unwrap_err().refusal(), Refusal::Untrusted, "no intermediate");

    // The intermediate allows one CA under it, not two.
    let second = world.intermediate.intermediate(&world.domain, AS_IS);
    let third = second.intermediate(&world.domain, AS_IS);
    let leaf = third.leaf(LUKE, AS_IS).0;
    let long = [leaf, third.der.clone(), second.der.clone(), world.intermediate.der.clone()];
    assert!(verify(&world, &long, LUKE).is_err(), "path length");
}

#[test]
fn a_self_signed_certificate_is_nobodys() {
    let world = World::new("rebels.example");
    let pair = rcgen::KeyPair::generate().unwrap();
    let params: CertificateParams = crate::ca::leaf_params(LUKE.to_owned(), at(NOW), at(NOW + HOUR)).unwrap();
    let der = params.self_signed(&pair).unwrap().der().clone();
    assert_eq!(verify(&world, &[der], LUKE).unwrap_err().refusal(), Refusal::Untrusted);
}

#[test]
fn what_cannot_be_read_is_refused() {
    let world = World::new("rebels.example");
    let chain = world.chain(LUKE, AS_IS);
    assert_eq!(verify(&world, &[], LUKE), Err(VerifyError::Length(0)));
    let nine = vec![chain[0].clone(); 9];
    assert_eq!(verify(&world, &nine, LUKE), Err(VerifyError::Length(9)));
    for cut in [0, 1, 20, chain[0].len() - 1] {
        let broken = [CertificateDer::from(chain[0][..cut].to_vec()), chain[1].clone()];
        assert_eq!(verify(&world, &broken, LUKE).unwrap_err().refusal(), Refusal::BadCertificate, "{cut}");
    }
    let mut trailing = chain[0].to_vec();
    trailing.push(0);
    let trailing = [CertificateDer::from(trailing), chain[1].clone()];
    assert_eq!(verify(&world, &trailing, LUKE).unwrap_err().refusal(), Refusal::BadCertificate);
}

#[test]
fn no_changed_bit_of_a_leaf_is_accepted() {
    let world = World::new("rebels.example");
    let chain = world.chain(LUKE, AS_IS);
    for byte in 0..chain[0].len() {
        let mut broken = chain[0].to_vec();
        broken[byte] ^= 1 << (byte % 8);
        let broken = [CertificateDer::from(broken), chain[1].clone()];
        assert!(verify(&world, &broken, LUKE).is_err(), "byte {byte}");
    }
}

#[test]
fn the_expected_one_may_be_one_of_a_set_or_any_node() {
    let world = World::new("rebels.example");
    let judge = |shown: &str, expected: &Expected| {
        verify_chain(&world.chain(shown, AS_IS), expected, &world.bundles().load(), at(NOW))
            .map(|verified| verified.id.to_string())
            .map_err(|error| error.refusal())
    };
    let [hoth, yavin] = ["hoth", "yavin"].map(|name| world.domain.node(name).unwrap());
    let known = Expected::AnyOf(Arc::new([hoth.clone()].into()));
    assert_eq!(judge(&hoth.to_string(), &known), Ok(hoth.to_string()));
    assert_eq!(judge(&yavin.to_string(), &known), Err(Refusal::WrongId));
    let node = Expected::Node(world.domain.clone());
    assert_eq!(judge(&yavin.to_string(), &node), Ok(yavin.to_string()));
    for other in [LUKE, "spiffe://rebels.example/ferromesh/ca", "spiffe://rebels.example/ferromesh/node/a/b"]
    {
        assert_eq!(judge(other, &node), Err(Refusal::WrongId), "{other}");
    }
    assert_eq!(node_name(&yavin), Some("yavin"));
}
