//! The same request id with the same body is a repeat; with another one, a mistake that is told.

use super::*;

fn signal(name: &str, input: &'static str) -> CommandBody {
    CommandBody::Signal { name: name.to_owned(), signal_id: "s1".to_owned(), input: Payload::json(input) }
}

fn cancel(reason: &str) -> CommandBody {
    CommandBody::Cancel { reason: reason.to_owned() }
}

fn terminate(reason: &str) -> CommandBody {
    CommandBody::Terminate { reason: reason.to_owned() }
}

#[test]
fn a_request_id_is_for_one_body() {
    let long = "x".repeat(limits::MESSAGE_BYTES_MAX + 9);
    let cases: [(&str, CommandBody, Vec<CommandBody>); 4] = [
        ("signal", signal("go", "1"), vec![signal("go", "2"), signal("stop", "1")]),
        ("cancel", cancel("a"), vec![cancel("b"), cancel("")]),
        ("long reason", cancel(&long), vec![cancel("x")]),
        ("terminate", terminate("a"), vec![terminate("b")]),
    ];
    let mismatch = Err(Rejection::IdempotencyMismatch { run_id: run_id() });
    for (what, body, others) in cases {
        let mut world = World::attached();
        let first = world.command(body);
        assert_eq!(world.send_command(&first, at(2)).unwrap().len(), 1, "{what}");
        for closed in [false, true] {
            if closed && !world.run.status().is_closed() {
                world.commit(vec![CommitCommand::CancelRun { details: String::new() }]).unwrap();
            }
            assert_eq!(world.send_command(&first, at(3)), Ok(vec![]), "{what}, closed: {closed}");
            for other in &others {
                let other = Command { body: other.clone(), ..first.clone() };
                assert_eq!(world.send_command(&other, at(3)), mismatch, "{what}, closed: {closed}");
            }
        }
        // Another id is another request.
        let again = world.send(others[0].clone(), at(4));
        let told = what == "signal";
        assert_eq!(again == mismatch, told, "{what}: a signal's id is its own, not the call's");
        world.check();
    }
}

#[test]
fn a_second_cancel_says_nothing_new() {
    let mut world = World::attached();
    assert_eq!(world.send(cancel("a"), at(2)).unwrap().len(), 1);
    assert_eq!(world.send(cancel("b"), at(3)).unwrap(), []);
    world.check();
}
