//! The engine with a completer that follows a script.

use super::*;
use crate::scripted::{Gate, Reading, Scripted};

fn request_in(document: &str, text: &str) -> Request {
    let snapshot = Snapshot::from_file(document.into(), text);
    complete::request(&snapshot, text.chars().count(), &Settings::standard()).unwrap()
}

fn engine(scripted: Scripted) -> Engine {
    Engine::start(Box::new(|| Ok(Box::new(scripted)))).unwrap()
}

/// One that writes nothing until the gate is dropped.
fn gated() -> (Scripted, Gate) {
    Scripted::always("12345678901234567890123456789012345678\n").gated()
}

#[tokio::test]
async fn the_newest_request_of_a_document_wins() {
    let (scripted, gate) = gated();
    let (_, finished) = scripted.counters();
    let engine = engine(scripted);
    let old: Vec<Pending> =
        (0..20).map(|i| engine.submit(Channel::Inline, request_in("a.py", &format!("x{i} = ")))).collect();
    let newest = engine.submit(Channel::Inline, request_in("a.py", "y = "));
    drop(gate);
    assert!(newest.await.is_ok());
    for pending in old {
        assert_eq!(pending.await.unwrap_err().reason, Reason::Superseded);
    }
    assert_eq!(finished.load(Ordering::SeqCst), 1, "only the newest ran to its end");
}

#[tokio::test]
async fn documents_and_channels_do_not_disturb_each_other() {
    let (scripted, gate) = gated();
    let engine = engine(scripted);
    let a = engine.submit(Channel::Inline, request_in("a.py", "x = "));
    let b = engine.submit(Channel::Inline, request_in("b.py", "x = "));
    let c = engine.submit(Channel::Menu, request_in("a.py", "x = "));
    drop(gate);
    assert!(a.await.is_ok() && b.await.is_ok());
    assert!(c.await.unwrap().is_reused, "the same place was answered a moment ago");
}

fn others(documents: &[(&str, &str)]) -> Others {
    let newest_first = documents.iter().map(|(path, text)| Snapshot::from_file((*path).into(), text)).collect();
    Others { newest_first, nearest_first: Arc::default(), settings: Arc::new(Settings::standard()) }
}

/// Waits until the completer has read `n` times.
async fn readings(read: &Mutex<Vec<Reading>>, n: usize) -> Vec<Reading> {
    let all = async {
        while read.lock().unwrap().len() < n {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), all).await.expect("nothing is asked any more");
    read.lock().unwrap().clone()
}

#[tokio::test]
async fn other_documents_are_read_once_all_is_answered_and_secrets_never() {
    let (scripted, gate) = gated();
    let read = scripted.read();
    let engine = engine(scripted);
    let pending = ["a.py", "c.py"].map(|of| engine.submit(Channel::Inline, request_in(of, "x = ")));
    let files = others(&[("/p/.env", "A=1\n"), ("/c.py", "z = 1\n"), ("/b.py", "y = 0\n")]);
    let nearest_first = files.newest_first.into();
    engine.offer(Others { nearest_first, ..others(&[("/p/.env", "A=1\n"), ("/b.py", "y = 1\n")]) });
    drop(gate);
    for pending in pending {
        pending.await.unwrap();
    }
    let uris = ["file:///b.py", "file:///c.py"].map(str::to_owned).to_vec();
    assert_eq!(readings(&read, 1).await, [(2, uris)], "an open document counts as it is in the editor");
}

#[tokio::test]
async fn documents_that_cannot_be_read_are_left_alone_from_then_on() {
    let scripted = Scripted::always("1\n");
    let read = scripted.read();
    let engine = engine(scripted);
    let answer = |document| engine.submit(Channel::Inline, request_in(document, "x = "));
    engine.offer(others(&[("/d.py", "panic")]));
    answer("a.py").await.unwrap();
    readings(&read, 1).await;
    // When it answers again, the thread is past its reading.
    answer("b.py").await.unwrap();
    engine.offer(others(&[("/d.py", "y = 1\n")]));
    for document in ["c.py", "d.py", "e.py"] {
        answer(document).await.unwrap();
    }
    assert_eq!(read.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn dropping_stops_the_model() {
    let (scripted, gate) = gated();
    let (_, finished) = scripted.counters();
    let engine = engine(scripted);
    drop(engine.submit(Channel::Inline, request_in("a.py", "x = ")));
    let other = engine.submit(Channel::Inline, request_in("b.py", "x = "));
    drop(gate);
    assert!(other.await.is_ok());
    assert_eq!(finished.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_panic_costs_one_answer() {
    let mut n_calls = 0;
    let engine = engine(Scripted::new(move |_| {
        n_calls += 1;
        assert!(n_calls != 1, "the first call");
        Ok("1\n".to_string())
    }));
    let first = engine.submit(Channel::Inline, request_in("a.py", "x = ")).await;
    assert_eq!(first.unwrap_err(), Reason::EnginePanicked.because("the first call"));
    assert!(engine.submit(Channel::Inline, request_in("a.py", "x = ")).await.is_ok());
    let is_told = |loading: &Loading| matches!(loading, Loading::Ready(info) if info.device == "cpu instead");
    engine.loading().wait_for(is_told).await.expect("what it computes on now");
}

#[tokio::test]
async fn typing_an_answer_needs_no_model() {
    let scripted = Scripted::always("call(1)\n");
    let (calls, _) = scripted.counters();
    let engine = engine(scripted);
    for typed in ["", "c", "ca", "call", "call(1"] {
        let answer = engine.submit(Channel::Inline, request_in("a.py", &format!("x = {typed}"))).await.unwrap();
        assert_eq!(answer.text, "call(1)"[typed.len()..]);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn requests_wait_for_the_model_and_learn_that_there_is_none() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let slowly: Loader = Box::new(move || {
        let _ = released.recv();
        Err("no such file".to_string())
    });
    let engine = Engine::start(slowly).unwrap();
    let early = engine.submit(Channel::Inline, request_in("a.py", "x = "));
    drop(release);
    assert_eq!(early.await.unwrap_err(), Reason::NoModel.because("no such file"));
    let late = engine.submit(Channel::Inline, request_in("a.py", "x = ")).await;
    assert_eq!(late.unwrap_err().reason, Reason::NoModel);
    assert!(matches!(&*engine.loading().borrow(), Loading::Failed(_)));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_model_is_loaded_with_the_priority_that_its_helpers_are_to_have() {
    let niceness = Arc::new(Mutex::new(None));
    let seen = niceness.clone();
    let load: Loader = Box::new(move || {
        *seen.lock().unwrap() = Some(priority::niceness());
        Ok(Box::new(Scripted::always("1\n")))
    });
    let engine = Engine::start(load).unwrap();
    engine.submit(Channel::Inline, request_in("a.py", "x = ")).await.unwrap();
    let (before, is_allowed) = std::thread::spawn(|| (priority::niceness(), priority::raise())).join().unwrap();
    assert_eq!(*niceness.lock().unwrap(), Some(if is_allowed { priority::NICENESS } else { before }));
}

#[tokio::test]
async fn forgetting_a_document_supersedes_what_was_asked_in_it() {
    let (scripted, gate) = gated();
    let (_, finished) = scripted.counters();
    let engine = engine(scripted);
    let inline = engine.submit(Channel::Inline, request_in("a.py", "x = "));
    let menu = engine.submit(Channel::Menu, request_in("a.py", "x = "));
    let other = engine.submit(Channel::Inline, request_in("b.py", "x = "));
    engine.forget(&request_in("a.py", "x = ").document);
    assert_eq!(inline.await.unwrap_err().reason, Reason::Superseded);
    assert_eq!(menu.await.unwrap_err().reason, Reason::Superseded);
    drop(gate);
    assert!(other.await.is_ok());
    assert_eq!(finished.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn closing_answers_what_waits() {
    let (scripted, _gate) = gated();
    let engine = engine(scripted);
    let pending: Vec<Pending> =
        (0..5).map(|i| engine.submit(Channel::Inline, request_in(&format!("{i}.py"), "x = "))).collect();
    engine.close();
    for pending in pending {
        assert_eq!(pending.await.unwrap_err().reason, Reason::ShuttingDown);
    }
    assert!(engine.submit(Channel::Inline, request_in("a.py", "x = ")).await.is_err());
}
