//! Rules from another process.

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::{Link, arrives, in_time, is_reset, passes};
use crate::{Command, Direction, Fault, Mode, NatsFault, Remote, Reply, Rule, When};

#[tokio::test]
async fn rules_come_over_a_socket() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("rules");
    assert!(Remote::connect(&path).await.is_err());
    let mut link = Link::new(Mode::Plain).await?;
    link.proxy.listen(&path)?;
    let mut remote = Remote::connect(&path).await?;
    let (mut client, mut server) = link.connect().await?;
    let held = Rule::from(Fault::HalfOpen).direction(Direction::Up).named("partition");
    assert_eq!(remote.ask(&Command::Add(held)).await?, Reply::Added(1));
    client.write_all(b"held").await?;
    let fired = remote.ask(&Command::WaitFired { id: 1, times: 1 });
    assert_eq!(in_time("it strikes", fired).await??, Reply::Done);
    let Reply::Counts(counts) = remote.ask(&Command::Counts).await? else { anyhow::bail!("no counts") };
    assert_eq!((counts[0].name.as_str(), counts[0].fired, counts[0].active), ("partition", 1, true));
    assert_eq!(remote.ask(&Command::Heal).await?, Reply::Done);
    arrives(&mut server, b"held").await?;
    assert!(remote.ask(&Command::Remove(1)).await.is_err(), "it is not in force any more");
    let odd = Rule::from(Fault::Nats { subject: String::new(), fault: NatsFault::Drop });
    assert!(remote.ask(&Command::Add(odd)).await.is_err());
    passes(&mut client, &mut server, b"open still").await?;
    remote.ask(&Command::Reset).await?;
    is_reset(&mut client, b"").await
}

#[tokio::test]
async fn the_lines_are_what_the_documentation_says() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("rules");
    let mut link = Link::new(Mode::Nats).await?;
    link.proxy.listen(&path)?;
    let mut stream = BufReader::new(UnixStream::connect(&path).await?);
    for (line, answer) in [
        (r#"{"add":{"fault":{"delay":{"ms":10}},"direction":"up"}}"#, r#"{"added":1}"#),
        (
            r#"{"add":{"fault":{"nats":{"fault":{"duplicate":{"more":4}}}},"when":{"chance":0.5}}}"#,
            r#"{"added":2}"#,
        ),
        (r#"{"remove":1}"#, r#""done""#),
        (r#""heal""#, r#""done""#),
        (
            r#""counts""#,
            r#"{"counts":[{"id":1,"name":"","matched":0,"fired":0,"active":false},{"id":2,"name":"","matched":0,"fired":0,"active":false}]}"#,
        ),
    ] {
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        let mut read = String::new();
        stream.read_line(&mut read).await?;
        assert_eq!(read.trim_end(), answer, "{line}");
    }
    stream.write_all(b"{\"add\":{\"fault\":\"drop\",\"odd\":1}}\n").await?;
    let mut read = String::new();
    stream.read_line(&mut read).await?;
    assert!(read.starts_with(r#"{"refused":"not a command"#), "{read}");
    Ok(())
}

#[test]
fn a_rule_survives_its_json() -> anyhow::Result<()> {
    let rule = Rule::from(Fault::LateRequest { sql: "COMMIT".to_owned(), ms: 5 });
    let rule = rule.named("late").direction(Direction::Up).when(When::NthOfConnection(3));
    assert_eq!(serde_json::from_str::<Rule>(&serde_json::to_string(&rule)?)?, rule);
    Ok(())
}
