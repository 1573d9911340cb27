//! What is issued, and what is left on disk when something goes wrong in between.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use mesh::spiffe::SpiffeId;
use rcgen::{CertificateSigningRequestParams, PKCS_ECDSA_P384_SHA384};
use rustls::pki_types::CertificateSigningRequestDer;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::bundle::{Bundle, Bundles};
use crate::svid::KeyRequest;
use crate::testing::{HOUR, NOW, at, domain, id};
use crate::verify::{Expected, verify_chain};

const LUKE: &str = "spiffe://rebels.example/ns/default/sa/luke";
const DAY: u64 = 24 * HOUR;

fn files(directory: &TempDir) -> Files {
    Files {
        root: directory.path().join("ca-root"),
        directory: directory.path().join("ca"),
        owner: None,
        trust_domain: domain("rebels.example"),
        lifetimes: Lifetimes::default(),
    }
}

/// A CA that was made just now.
fn made() -> (TempDir, Files, Authority) {
    let directory = tempfile::tempdir().unwrap();
    let files = files(&directory);
    let prepared = files.prepare(at(NOW)).unwrap();
    assert_eq!(prepared.problem, None);
    let authority = open(&files);
    (directory, files, authority)
}

fn open(files: &Files) -> Authority {
    Authority::open(&files.directory, SVID_LIFETIME).unwrap()
}

fn issue(authority: &Authority, text: &str, now: u64) -> Vec<CertificateDer<'static>> {
    authority.issue(KeyRequest::new().unwrap().der(), &id(text), at(now)).unwrap()
}

/// Whether somebody who trusts that bundle takes what that CA issues.
fn is_trusted(authority: &Authority, bundle: &Bundle, now: u64) -> bool {
    let chain = issue(authority, LUKE, now);
    let bundles = Bundles::new(bundle.clone());
    verify_chain(&chain, &Expected::Id(id(LUKE)), &bundles.load(), at(now)).is_ok()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn what_is_issued_verifies_as_what_was_asked_for() {
    let (_directory, files, authority) = made();
    let key = KeyRequest::new().unwrap();
    let chain = authority.issue(key.der(), &id(LUKE), at(NOW)).unwrap();
    let bundles = Bundles::new(files.prepare(at(NOW)).unwrap().bundle);
    let verified = verify_chain(&chain, &Expected::Id(id(LUKE)), &bundles.load(), at(NOW)).unwrap();
    assert_eq!(verified.not_after, at(NOW + HOUR), "one hour");
    let svid = key.finish(&id(LUKE), chain).unwrap();
    assert_eq!((svid.not_before(), svid.not_after()), (at(NOW - 60), at(NOW + HOUR)));
    assert_eq!(svid.serial(), verified.serial);
}

#[test]
fn a_leaf_has_every_extension_the_standard_asks_of_an_issuer() {
    let (_directory, _files, authority) = made();
    let chain = issue(&authority, LUKE, NOW);
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert_eq!(usage.value.flags, 1, "and nothing else");
    let basic = leaf.basic_constraints().unwrap().unwrap();
    assert!(!basic.value.ca, "and it is said");
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth);
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "for the subject is empty");
    assert_eq!(names.value.general_names.len(), 1);
    assert_eq!(leaf.public_key().parsed().unwrap().key_size(), 256);
}

#[test]
fn signing_certificates_are_cas_of_the_trust_domain_without_a_path() {
    let (_directory, files, authority) = made();
    let intermediate = &issue(&authority, LUKE, NOW)[1];
    let bundle = files.prepare(at(NOW)).unwrap().bundle;
    let root = bundle.certificates().next().unwrap();
    for (der, below) in [(intermediate, 0), (root, 1)] {
        let signer = x509::signer(der).unwrap();
        assert_eq!(signer.trust_domain, Some(domain("rebels.example")));
        let (_, certificate) = X509Certificate::from_der(der).unwrap();
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && !usage.value.digital_signature());
        let basic = certificate.basic_constraints().unwrap().unwrap();
        assert!(basic.critical && basic.value.ca);
        assert_eq!(basic.value.path_len_constraint, Some(below));
        assert!(certificate.name_constraints().unwrap().is_none(), "webpki refuses any on URIs");
    }
}

#[test]
fn serial_numbers_are_random_also_for_the_same_key() {
    let (_directory, _files, authority) = made();
    let key = KeyRequest::new().unwrap();
    let serials: std::collections::BTreeSet<Vec<u8>> = (0..100)
        .map(|_| {
            let chain = authority.issue(key.der(), &id(LUKE), at(NOW)).unwrap();
            let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
            let serial = leaf.raw_serial().to_vec();
            assert!(serial.len() <= 17 && serial[0] < 0x80, "positive");
            serial
        })
        .collect();
    assert_eq!(serials.len(), 100);
    assert!(serials.iter().filter(|serial| serial.len() >= 15).count() > 90, "of 128 bits");
}

#[test]
fn nothing_lasts_longer_than_the_intermediate() {
    let (_directory, _files, authority) = made();
    let end = authority.not_after().as_secs();
    assert_eq!(end, NOW + 365 * DAY);
    let chain = issue(&authority, LUKE, end - 10);
    assert_eq!(x509::not_after(&chain[0]).unwrap(), at(end));
    let key = KeyRequest::new().unwrap();
    let late = authority.issue(key.der(), &id(LUKE), at(end)).unwrap_err();
    assert!(matches!(late, CaError::Ended), "{late}");
}

#[test]
fn no_id_of_another_domain_or_without_a_path_is_issued() {
    let (_directory, _files, authority) = made();
    let key = KeyRequest::new().unwrap();
    for text in ["spiffe://empire.example/ns/default/sa/trooper", "spiffe://rebels.example"] {
        let refused = authority.issue(key.der(), &id(text), at(NOW)).unwrap_err();
        assert!(matches!(refused, CaError::Id(..)), "{refused}");
    }
}

#[test]
fn the_longest_id_is_issued_and_read() {
    let (_directory, files, authority) = made();
    let longest = format!("spiffe://rebels.example/{}", "x".repeat(2048 - 24));
    let longest: SpiffeId = longest.parse().unwrap();
    let key = KeyRequest::new().unwrap();
    let chain = authority.issue(key.der(), &longest, at(NOW)).unwrap();
    let bundles = Bundles::new(files.prepare(at(NOW)).unwrap().bundle);
    assert!(verify_chain(&chain, &Expected::Id(longest), &bundles.load(), at(NOW)).is_ok());
}

#[test]
fn a_request_proves_possession_of_a_p256_key() {
    let (_directory, _files, authority) = made();
    let refused = |request: &[u8]| {
        let refused = authority.issue(request, &id(LUKE), at(NOW)).unwrap_err();
        assert!(matches!(refused, CaError::Request(_)), "{refused}");
    };
    let good = KeyRequest::new().unwrap();
    for byte in 0..good.der().len() {
        let mut changed = good.der().to_vec();
        changed[byte] ^= 1 << (byte % 8);
        // Bits that the signature does not cover are those of the signature's own framing.
        if authority.issue(&changed, &id(LUKE), at(NOW)).is_ok() {
            let read =
                CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(changed));
            let same =
                CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(good.der()));
            assert_eq!(read.unwrap().public_key, same.unwrap().public_key, "byte {byte}");
        }
    }
    refused(b"");
    refused(b"not a request");
    refused(&vec![0x30; 5000]);
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    refused(CertificateParams::default().serialize_request(&p384).unwrap().der());
}

/// What a request asks for beside the key is the CA's to decide.
#[test]
fn a_request_cannot_ask_for_another_name_or_for_a_ca() {
    let (_directory, _files, authority) = made();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.subject_alt_names =
        vec![SanType::URI("spiffe://rebels.example/ns/default/sa/vader".try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let pair = KeyPair::generate().unwrap();
    let request = params.serialize_request(&pair).unwrap();
    let chain = authority.issue(request.der(), &id(LUKE), at(NOW)).unwrap();
    assert_eq!(x509::leaf(&chain[0]).unwrap().id, id(LUKE));
}

#[test]
fn files_are_for_their_owner_and_the_bundle_for_everybody() {
    let (_directory, files, _authority) = made();
    assert_eq!((mode(&files.root), mode(&files.directory)), (0o700, 0o700));
    assert_eq!(mode(&files.root.join(ROOT_FILE)), 0o600);
    assert_eq!(mode(&files.directory.join(CA_FILE)), 0o600);
    assert_eq!(mode(&files.directory.join(BUNDLE_FILE)), 0o644);
    let bundle = fs::read_to_string(files.directory.join(BUNDLE_FILE)).unwrap();
    assert!(!bundle.contains("PRIVATE"));
}

#[test]
fn preparing_again_changes_nothing() {
    let (_directory, files, _authority) = made();
    let read = || {
        [files.root.join(ROOT_FILE), files.directory.join(CA_FILE), files.directory.join(BUNDLE_FILE)]
            .map(|path| fs::read(path).unwrap())
    };
    let before = read();
    files.prepare(at(NOW + DAY)).unwrap();
    assert_eq!(read(), before);
}

/// Every state that a kill can leave: each file is there or not, in the order in which they are made, and the next one
/// half written under another name.
#[test]
fn a_ca_killed_at_any_point_is_made_whole_by_the_next_start() {
    for survivors in 0..=2 {
        let (_directory, files, _authority) = made();
        let order =
            [files.root.join(ROOT_FILE), files.directory.join(BUNDLE_FILE), files.directory.join(CA_FILE)];
        let root = fs::read(&order[0]).unwrap();
        for lost in &order[survivors..] {
            let half = fs::read(lost).unwrap();
            let name = format!(".{}.0123456789abcdef.new", lost.file_name().unwrap().to_str().unwrap());
            fs::write(lost.with_file_name(name), &half[..half.len() / 2]).unwrap();
            fs::remove_file(lost).unwrap();
        }
        let prepared = files.prepare(at(NOW)).unwrap();
        assert_eq!(prepared.problem, None);
        assert!(is_trusted(&open(&files), &prepared.bundle, NOW), "{survivors} files were left");
        assert_eq!(fs::read(&order[0]).unwrap() == root, survivors > 0, "a root that is there stays");
        let left: Vec<_> = fs::read_dir(&files.directory).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "no half is left: {left:?}");
    }
}

#[test]
fn the_root_key_may_be_moved_away_until_renewal_is_due() {
    let (directory, files, authority) = made();
    let (root, away) = (files.root.join(ROOT_FILE), directory.path().join("safe.pem"));
    fs::rename(&root, &away).unwrap();
    let bundle = files.prepare(at(NOW + DAY)).unwrap().bundle;
    assert!(is_trusted(&open(&files), &bundle, NOW + DAY));

    // The last third: said, and still good.
    let due = NOW + 250 * DAY;
    let prepared = files.prepare(at(due)).unwrap();
    let problem = prepared.problem.unwrap();
    assert!(problem.contains("ends soon") && problem.contains("ca-root/root.pem"), "{problem}");
    assert_eq!(prepared.not_after, authority.not_after());
    // Ended: nothing is pretended.
    let ended = files.prepare(at(NOW + 366 * DAY)).unwrap_err();
    assert!(matches!(ended, CaError::RootNeeded { .. }), "{ended}");

    fs::rename(&away, &root).unwrap();
    let prepared = files.prepare(at(due)).unwrap();
    assert_eq!((prepared.problem, prepared.not_after), (None, at(due + 365 * DAY)));
    assert!(is_trusted(&open(&files), &bundle, due), "by the same root");
}

#[test]
fn without_root_and_intermediate_no_new_root_appears_by_itself() {
    let (_directory, files, _authority) = made();
    fs::remove_file(files.root.join(ROOT_FILE)).unwrap();
    let bundle = files.directory.join(BUNDLE_FILE);
    let saved = fs::read(&bundle).unwrap();
    fs::remove_file(&bundle).unwrap();
    assert!(matches!(files.prepare(at(NOW)), Err(CaError::RootNeeded { .. })), "the bundle is gone");
    fs::write(&bundle, saved).unwrap();
    fs::remove_file(files.directory.join(CA_FILE)).unwrap();
    assert!(matches!(files.prepare(at(NOW)), Err(CaError::RootNeeded { .. })), "the intermediate is gone");
}

#[test]
fn a_root_taken_out_of_the_bundle_is_not_put_back() {
    let (_directory, files, _authority) = made();
    fs::write(files.directory.join(BUNDLE_FILE), "").unwrap();
    let refused = files.prepare(at(NOW)).unwrap_err();
    assert!(matches!(refused, CaError::RootNotTrusted { .. }), "{refused}");
    assert_eq!(fs::read(files.directory.join(BUNDLE_FILE)).unwrap(), b"");
}

#[test]
fn a_root_is_rotated_in_three_steps_without_a_gap() {
    let (_directory, files, old) = made();
    let before = files.prepare(at(NOW)).unwrap().bundle;
    let bundle = || files.prepare(at(NOW)).unwrap().bundle;

    // The key may be lost: another root does not need it.
    fs::remove_file(files.root.join(ROOT_FILE)).unwrap();
    assert_eq!(files.rotate(at(NOW)).unwrap(), Rotated::Announced);
    let both = bundle();
    assert_eq!(both.certificates().count(), 2);
    assert!(is_trusted(&open(&files), &before, NOW), "who has not heard of it yet trusts what is issued");

    assert_eq!(files.rotate(at(NOW)).unwrap(), Rotated::Switched);
    let new = open(&files);
    assert!(is_trusted(&old, &both, NOW) && is_trusted(&new, &both, NOW));
    assert!(!is_trusted(&new, &before, NOW));

    fs::remove_file(files.root.join(ROOT_FILE)).unwrap();
    assert_eq!(files.rotate(at(NOW)).unwrap(), Rotated::Finished);
    let after = bundle();
    assert!(is_trusted(&new, &after, NOW) && !is_trusted(&old, &after, NOW));
    assert!(is_trusted(&open(&files), &after, NOW));
}

#[test]
fn what_is_in_the_files_is_checked() {
    let (_directory, files, _authority) = made();
    let (_other_directory, other, _other) = made();
    let ca = files.directory.join(CA_FILE);
    let good = fs::read_to_string(&ca).unwrap();
    let foreign = fs::read_to_string(other.directory.join(CA_FILE)).unwrap();
    let split =
        |text: &str| text.split_once("-----BEGIN CERTIFICATE").map(|(key, _)| key.to_owned()).unwrap();
    let mixed = good.replace(&split(&good), &split(&foreign));
    let broken = [
        ("", "there is no key"),
        (&good[..good.len() / 2], ""),
        (mixed.as_str(), "the key is not that of the certificate"),
        (&split(&good), "0 certificates instead of one"),
    ];
    for (content, told) in broken {
        fs::write(&ca, content).unwrap();
        let error = Authority::open(&files.directory, SVID_LIFETIME).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: ", ca.display())) && error.contains(told), "{error}");
    }
    // Another CA's, whole: of a root that nobody here trusts. The root key is at hand, so it is replaced.
    fs::write(&ca, foreign).unwrap();
    let bundle = files.prepare(at(NOW)).unwrap().bundle;
    assert!(is_trusted(&open(&files), &bundle, NOW));
}

#[test]
fn links_laid_by_the_directorys_owner_are_not_followed() {
    let (directory, files, _authority) = made();
    let target = directory.path().join("shadow");
    fs::write(&target, "secret").unwrap();
    let ca = files.directory.join(CA_FILE);
    fs::remove_file(&ca).unwrap();
    symlink(&target, &ca).unwrap();
    assert!(Authority::open(&files.directory, SVID_LIFETIME).is_err());
    files.prepare(at(NOW)).unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "secret");
    assert!(!fs::symlink_metadata(&ca).unwrap().is_symlink());
}

#[test]
fn a_directory_that_cannot_be_written_is_named_and_left_as_it_was() {
    let (directory, files, _authority) = made();
    // A file where the directory should be stops root, too.
    let blocked = Files { directory: directory.path().join("ca/ca.pem/x"), ..files.clone() };
    let error = blocked.prepare(at(NOW)).unwrap_err().to_string();
    assert!(error.starts_with("cannot make directory ") && error.contains("ca.pem/x"), "{error}");
    assert!(is_trusted(&open(&files), &files.prepare(at(NOW)).unwrap().bundle, NOW));
}

#[test]
fn another_trust_domain_gets_another_intermediate_only_by_its_own_root() {
    let (_directory, files, _authority) = made();
    let renamed = Files { trust_domain: domain("empire.example"), ..files };
    let error = renamed.prepare(at(NOW)).unwrap_err().to_string();
    assert!(error.contains("rebels.example") && error.contains("empire.example"), "{error}");
}

#[test]
fn lifetimes_are_configurable() {
    let directory = tempfile::tempdir().unwrap();
    let lifetimes = Lifetimes { root: Duration::from_secs(100), intermediate: Duration::from_secs(200) };
    let files = Files { lifetimes, ..files(&directory) };
    assert_eq!(files.prepare(at(NOW)).unwrap().not_after, at(NOW + 100), "no longer than the root");
    let authority = Authority::open(&files.directory, Duration::from_secs(3)).unwrap();
    assert_eq!(x509::not_after(&issue(&authority, LUKE, NOW)[0]).unwrap(), at(NOW + 3));
}
