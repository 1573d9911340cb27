use super::{say, says};

fn secret(fields: &str) -> String {
    format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: web}}\n{fields}\n")
}

#[test]
fn what_an_api_server_takes_is_taken() {
    for fields in [
        "",
        "type: Opaque\ndata: {a: aHVzaA==, b.c_d-e: \"\"}",
        "type: kubernetes.io/tls\ndata: {tls.crt: aHVzaA==}\nstringData: {tls.key: hush}\nimmutable: true",
        "data:\n  a: |\n    aHVz\n    aA==\nstringData:",
        "type: kubernetes.io/tls\ndata: {tls.crt: /w==, tls.key: \"\"}",
    ] {
        says(&secret(fields), &[]);
    }
}

#[test]
fn a_faulty_secret_is_refused_and_no_value_is_shown() {
    let base64 = "expected base64, with its padding; what is plain text goes to stringData";
    let string = "expected a string: put the value in quotes";
    let large = format!("stringData: {{a: {}}}", "x".repeat((1 << 20) + 1));
    for (fields, expected) in [
        ("data: {tls.key: hush!}", format!("4 data.tls.key: {base64}")),
        ("data: {tls.key: aHVzaA}", format!("4 data.tls.key: {base64}")),
        ("data: {tls.key: aHVzaB==}", format!("4 data.tls.key: {base64}")),
        ("data: {tls.key: 1234}", format!("4 data.tls.key: {string}")),
        ("stringData: {pin: 1234}", format!("4 stringData.pin: {string}")),
        ("stringData: {pin: [hush]}", format!("4 stringData.pin: {string}")),
        ("stringData: {pin: }", format!("4 stringData.pin: {string}")),
        ("data: aHVzaA==", "4 data: expected a mapping from names of items to their values".to_owned()),
        (
            "stringData: {a b: hush}",
            "4 stringData.a b: no name of an item; it has letters, digits, '-', '_' and '.', at most 253 long"
                .to_owned(),
        ),
        (
            "type: kubernetes.io/tls\nstringData: {tls.crt: hush}",
            "4 type: kubernetes.io/tls: tls.key is missing in data (and in stringData)".to_owned(),
        ),
        ("datas: {a: hush}", "4 datas: unknown, did you mean data".to_owned()),
        (&large, "1 found 1048577 bytes in all items, at most 1048576 fit a Secret".to_owned()),
    ] {
        let told = say(&secret(fields));
        assert_eq!(told, [format!("rule1.yaml:{expected}")]);
        assert!(!told[0].contains("hush") && !told[0].contains("1234") && !told[0].contains("aHVz"), "{told:?}");
    }
}
