//! Addresses good and bad; above all, that credentials never come out again.

use super::*;

#[test]
fn takes_credentials_out() {
    let address = Address::parse("nats://al%40ice:s3cr%2Fet@db.example:4333, other.example").unwrap();
    assert_eq!(address.to_string(), "db.example:4333, other.example:4222");
    assert!(address.login == Login::User { name: "al@ice".to_owned(), password: "s3cr/et".to_owned() });
    let shown = format!("{:?}", address.servers);
    assert!(!shown.contains("s3cr") && !shown.contains("ice"), "{shown}");
}

#[test]
fn a_lone_user_is_a_token() {
    let address = Address::parse("tls://t0ken@[::1]").unwrap();
    assert_eq!(address.to_string(), "::1:4222");
    assert!(address.login == Login::Token("t0ken".to_owned()));
    assert!(address.servers[0].tls_required());
}

#[test]
fn refuses_clearly_and_without_the_secret() {
    let cases = [
        ("", "is empty"),
        (" , ", "is empty"),
        ("http://u:secret@host", "invalid scheme"),
        ("ws://u:secret@host", "WebSocket"),
        ("nats://u:secret@host:port", "not valid"),
        ("nats://u:secret@", "not valid"),
        ("nats://u:secret@a,nats://u:other@b", "same credentials"),
        ("nats://u:secret%FF@a", "UTF-8"),
    ];
    for (text, expect) in cases {
        let Err(Error::Refused(message)) = Address::parse(text) else { panic!("{text:?} was taken") };
        assert!(message.contains(expect), "{text:?}: {message}");
        assert!(!message.contains("secret"), "{message}");
    }
}
