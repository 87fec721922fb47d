//! The handle, the streams and the engine thread over a device that is told what to do.

use std::collections::VecDeque;
use std::sync::mpsc;

use foveal_types::{Delta, DeviceFailure, FinishReason, SamplingParams, SeqId, TokenId, TokenOutput};

use super::*;
use crate::scheduler::testing::{limits, request};
use crate::scheduler::{SequenceRows, StepResults, Work};

/// What the device does with a step.
enum Order {
    /// Token 5 for whoever samples.
    Run,
    /// The logits of the step's first sequence are NaN.
    FailSequence,
    /// Nothing works any more.
    Break,
    Panic,
}

/// Does one order per step and says which sequences were in it. Without orders left it runs.
struct Ordered {
    orders: mpsc::Receiver<Order>,
    steps: mpsc::Sender<Vec<SeqId>>,
    forgotten: mpsc::Sender<SeqId>,
    submitted: VecDeque<Work>,
}

impl StepExecutor for Ordered {
    fn submit(&mut self, work: Work) -> Result<(), DeviceFailure> {
        let _ = self.steps.send(work.sequences.iter().map(|s| s.id).collect());
        self.submitted.push_back(work);
        Ok(())
    }

    fn wait(&mut self) -> Result<StepResults, DeviceFailure> {
        let order = self.orders.recv().unwrap_or(Order::Run);
        let Work { step, sequences, .. } = self.submitted.pop_front().expect("a step was submitted");
        let run = |s: &SequenceRows| {
            Ok(s.samples.then_some(TokenOutput { token_id: TokenId(5), logprob: None, logprobs: None }))
        };
        let mut sequences: Vec<_> = sequences.iter().map(run).collect();
        match order {
            Order::Run => {}
            Order::FailSequence => sequences[0] = Err(DeviceFailure::new("NaN").into()),
            Order::Break => return Err(DeviceFailure::new("the device fell over")),
            Order::Panic => panic!("a bug"),
        }
        Ok(StepResults { step, sequences })
    }

    fn forget(&mut self, id: SeqId) {
        let _ = self.forgotten.send(id);
    }
}

struct Rig {
    engine: Engine,
    orders: Option<mpsc::Sender<Order>>,
    steps: mpsc::Receiver<Vec<SeqId>>,
    forgotten: mpsc::Receiver<SeqId>,
}

impl Rig {
    /// One sequence runs at a time, and no step ahead.
    fn new(max_waiting: usize) -> Self {
        Self::with(max_waiting, 1, false)
    }

    fn with(max_waiting: usize, max_num_seqs: usize, run_ahead: bool) -> Self {
        let (orders, order_receiver) = mpsc::channel();
        let (step_sender, steps) = mpsc::channel();
        let (forgotten_sender, forgotten) = mpsc::channel();
        let executor = Ordered {
            orders: order_receiver,
            steps: step_sender,
            forgotten: forgotten_sender,
            submitted: VecDeque::new(),
        };
        let options = EngineOptions {
            limits: Limits { max_num_seqs, ..limits() },
            memory: MemoryPlan::default(),
            defaults: GenerationDefaults::default(),
            max_waiting,
            prefix_caching: true,
            run_ahead,
            pixels: Arc::new(foveal_types::HeapPixels),
        };
        let engine = Engine::start(executor, options).unwrap();
        Self { engine, orders: Some(orders), steps, forgotten }
    }

    fn order(&self, order: Order) {
        self.orders.as_ref().unwrap().send(order).unwrap();
    }

    /// From now on every step runs.
    fn run_freely(&mut self) {
        self.orders = None;
    }
}

fn short(max_tokens: usize) -> PreparedRequest {
    let sampling = SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() };
    PreparedRequest { sampling, ..request(&[3; 4]) }
}

#[test]
fn the_handle_is_what_programs_need() {
    fn check<T: Clone + Send + Sync + 'static>() {}
    check::<Engine>();
    fn check_stream<T: futures_core::Stream + Send + Unpin + 'static>() {}
    check_stream::<DeltaStream>();
}

#[test]
fn an_answer_streams_and_ends() {
    let mut rig = Rig::new(4);
    rig.run_freely();
    let deltas: Vec<Delta> = rig.engine.generate(short(2)).blocking().map(Result::unwrap).collect();
    assert!(matches!(deltas[0], Delta::Prefill { done: 0, total: 4 }));
    assert!(matches!(deltas[1], Delta::Prefill { done: 4, total: 4 }));
    assert!(matches!((&deltas[2], &deltas[3]), (Delta::Token(_), Delta::Token(_))));
    assert!(matches!(deltas[4], Delta::Finished { reason: FinishReason::Length, .. }));
    assert_eq!(deltas.len(), 5);
}

#[test]
fn the_stream_wakes_who_awaits_it() {
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&count));
    let mut rig = Rig::new(4);
    let mut stream = rig.engine.generate(short(1));
    let mut poll = || futures_core::Stream::poll_next(Pin::new(&mut stream), &mut Context::from_waker(&waker));
    rig.steps.recv().unwrap();
    // The first delta came before the step; then there is nothing until it is allowed to run.
    assert!(matches!(poll(), Poll::Ready(Some(Ok(Delta::Prefill { done: 0, .. })))));
    assert!(poll().is_pending());
    assert_eq!(count.0.load(Ordering::SeqCst), 0);
    rig.run_freely();
    while count.0.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    assert!(matches!(poll(), Poll::Ready(Some(Ok(Delta::Prefill { done: 4, .. })))));
    let rest: Vec<_> = stream.blocking().map(Result::unwrap).collect();
    assert!(matches!(rest[..], [Delta::Token(_), Delta::Finished { .. }]), "{rest:?}");
}

#[test]
fn dropping_the_stream_cancels_within_one_step() {
    let mut rig = Rig::new(4);
    let stream = rig.engine.generate(short(100));
    rig.order(Order::Run);
    rig.steps.recv().unwrap();
    // The second step is under way when the caller goes.
    rig.steps.recv().unwrap();
    drop(stream);
    rig.order(Order::Run);
    assert_eq!(rig.forgotten.recv().unwrap(), SeqId(0));
    rig.run_freely();
    assert_eq!(rig.engine.generate(short(1)).blocking().count(), 4);
    assert_eq!(rig.steps.recv().unwrap(), [SeqId(1)], "no third step of the cancelled request");
}

#[test]
fn a_full_queue_says_so_at_once() {
    let mut rig = Rig::new(2);
    let running = rig.engine.generate(short(1));
    rig.steps.recv().unwrap();
    let waiting: Vec<_> = (0..2).map(|_| rig.engine.generate(short(1))).collect();
    assert_eq!(rig.engine.num_waiting(), 2);
    let mut refused = rig.engine.generate(short(1)).blocking();
    assert!(matches!(refused.next(), Some(Err(Error::Exhausted(e))) if e.message.starts_with("2 requests")));
    assert!(refused.next().is_none());
    rig.run_freely();
    for stream in std::iter::once(running).chain(waiting) {
        assert!(stream.blocking().all(|item| item.is_ok()));
    }
    assert_eq!(rig.engine.num_waiting(), 0);
    assert!(rig.engine.generate(short(1)).blocking().all(|item| item.is_ok()), "there is room again");
}

#[test]
fn waiting_requests_that_are_dropped_give_their_place_back() {
    let mut rig = Rig::new(1);
    let running = rig.engine.generate(short(1));
    rig.steps.recv().unwrap();
    drop(rig.engine.generate(short(1)));
    rig.run_freely();
    assert!(running.blocking().all(|item| item.is_ok()));
    // The thread has seen the drop before it goes idle; a later request finds its place once it has.
    while rig.engine.num_waiting() > 0 {
        std::thread::yield_now();
    }
    assert!(rig.engine.generate(short(1)).blocking().all(|item| item.is_ok()));
}

fn last(stream: DeltaStream) -> Result<Delta, Error> {
    stream.blocking().last().unwrap()
}

#[test]
fn a_failed_sequence_fails_alone() {
    for (max_num_seqs, run_ahead) in [(1, false), (4, false), (4, true)] {
        let mut rig = Rig::with(4, max_num_seqs, run_ahead);
        let bad = rig.engine.generate(short(3));
        rig.steps.recv().unwrap();
        let good = rig.engine.generate(short(3));
        rig.order(Order::Run);
        rig.order(Order::FailSequence);
        rig.run_freely();
        assert!(matches!(last(bad), Err(Error::Device(e)) if e.message == "NaN"));
        assert!(matches!(last(good), Ok(Delta::Finished { .. })));
        assert!(rig.engine.stopped().is_none());
    }
}

#[test]
fn requests_run_side_by_side_and_are_counted() {
    let mut rig = Rig::with(4, 4, false);
    let first = rig.engine.generate(short(2));
    assert_eq!(rig.steps.recv().unwrap(), [SeqId(0)]);
    let second = rig.engine.generate(short(1));
    rig.order(Order::Run);
    assert_eq!(rig.steps.recv().unwrap(), [SeqId(0), SeqId(1)]);
    let stats = rig.engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.steps, stats.kv_pages_used, stats.kv_pages_total), (2, 0, 2, 2, 8));
    rig.run_freely();
    for stream in [first, second] {
        assert!(matches!(last(stream), Ok(Delta::Finished { .. })));
    }
    assert_eq!((rig.engine.stats().running, rig.engine.stats().kv_pages_used), (0, 0));
}

#[test]
fn with_run_ahead_a_step_is_sent_off_before_the_last_one_is_done() {
    let mut rig = Rig::with(4, 4, true);
    let stream = rig.engine.generate(short(3));
    // No order has been given: nothing has been computed.
    assert_eq!(rig.steps.recv().unwrap(), [SeqId(0)]);
    assert_eq!(rig.steps.recv().unwrap(), [SeqId(0)]);
    rig.run_freely();
    assert_eq!(stream.blocking().map(Result::unwrap).filter(|delta| matches!(delta, Delta::Token(_))).count(), 3);
    assert_eq!(rig.steps.recv().unwrap(), [SeqId(0)]);
    assert!(rig.steps.try_recv().is_err(), "a length is known in advance");
}

#[test]
fn a_panic_or_a_broken_device_reaches_every_caller() {
    for (order, text) in [(Order::Panic, "panicked: a bug"), (Order::Break, "fell over")] {
        let rig = Rig::new(4);
        let streams: Vec<_> = (0..3).map(|_| rig.engine.generate(short(3))).collect();
        rig.steps.recv().unwrap();
        rig.order(order);
        for stream in streams {
            assert!(matches!(last(stream), Err(Error::Device(e)) if e.message.contains(text)));
        }
        assert!(matches!(last(rig.engine.generate(short(1))), Err(Error::Device(e)) if e.message.contains(text)));
        assert!(matches!(rig.engine.stopped(), Some(Error::Device(_))));
        rig.engine.shutdown();
    }
}

#[test]
fn shutting_down_ends_open_streams() {
    let mut rig = Rig::new(4);
    let stream = rig.engine.generate(short(100));
    rig.steps.recv().unwrap();
    let other = rig.engine.clone();
    let waiter = std::thread::spawn(move || other.shutdown());
    rig.order(Order::Run);
    rig.run_freely();
    waiter.join().unwrap();
    assert!(matches!(last(stream), Err(Error::Exhausted(_)) | Ok(Delta::Finished { .. })));
    assert!(matches!(last(rig.engine.generate(short(1))), Err(Error::Exhausted(_))));
}

#[test]
fn what_can_never_run_is_refused_before_it_waits() {
    let rig = Rig::new(4);
    let refused = rig.engine.generate(request(&[3; 300]));
    assert!(matches!(last(refused), Err(Error::Request(e)) if e.code == "context_length_exceeded"));
    assert_eq!(rig.engine.num_waiting(), 0);
}
