//! Any sequence of requests and results, against a plain model of each request. `SALTERN_MODEL_CASES` tries more.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::mem::IoBuffer;

const SLOTS: usize = 3;
const ALIGN: usize = 512;
const BYTES: usize = 4 * ALIGN;

/// What happens. Numbers choose among what is there.
#[derive(Debug, Clone)]
enum Event {
    Push(Op),
    /// The kernel moved so many bytes of what was asked for.
    Moved(usize, usize),
    Failed(usize, Errno),
    /// A completion of a request that has ended before.
    Late(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let op = prop_oneof![Just(Op::Read), Just(Op::Write), Just(Op::SyncData), Just(Op::SyncAll)];
    let errno = prop_oneof![Just(Errno::EINTR), Just(Errno::EAGAIN), Just(Errno::EIO), Just(Errno::ENOSPC)];
    let moved = prop_oneof![Just(BYTES), (0..=4_usize).prop_map(|blocks| blocks * ALIGN), 0..=BYTES];
    prop_oneof![
        3 => op.prop_map(Event::Push),
        4 => (any::<usize>(), moved).prop_map(|(which, bytes)| Event::Moved(which, bytes)),
        1 => (any::<usize>(), errno).prop_map(|(which, errno)| Event::Failed(which, errno)),
        1 => any::<usize>().prop_map(Event::Late),
    ]
}

/// A request in flight, as the model knows it.
struct Flying {
    token: usize,
    op: Op,
    slot: u32,
    user_data: u64,
    done: usize,
    rounds: u32,
}

impl Flying {
    fn len(&self) -> usize {
        if matches!(self.op, Op::Read | Op::Write) { BYTES } else { 0 }
    }

    /// What the request ends with, if it does.
    fn after(&mut self, result: Result<usize, Errno>) -> Option<Result<usize, Errno>> {
        self.rounds += 1;
        let is_sync = self.len() == 0;
        match result {
            _ if self.rounds > CONTINUE_MAX => Some(Err(Errno::EIO)),
            Err(Errno::EINTR | Errno::EAGAIN) if !is_sync => None,
            Err(errno) => Some(Err(errno)),
            Ok(bytes) if self.done + bytes == self.len() => Some(Ok(self.len())),
            Ok(0) if self.op == Op::Write => Some(Err(Errno::EIO)),
            Ok(bytes) if self.op == Op::Read && (bytes == 0 || !(self.done + bytes).is_multiple_of(ALIGN)) => {
                Some(Ok(self.done + bytes))
            }
            Ok(bytes) => {
                self.done = (self.done + bytes) / ALIGN * ALIGN;
                None
            }
        }
    }
}

/// The table, and what it should hold.
struct World {
    slots: Slots,
    fd: Rc<OwnedFd>,
    flying: Vec<Flying>,
    ended: Vec<u64>,
    tokens: usize,
}

impl World {
    fn new() -> Self {
        let fd = Rc::new(OwnedFd::from(std::fs::File::open("/dev/null").expect("open")));
        Self { slots: Slots::new(SLOTS), fd, flying: Vec::new(), ended: Vec::new(), tokens: 0 }
    }

    fn push(&mut self, op: Op) {
        let token = self.tokens;
        self.tokens += 1;
        let span = matches!(op, Op::Read | Op::Write).then(|| IoBuffer::new(vec![0; BYTES].into()).span(0, BYTES));
        let request = Request { op, fd: self.fd.clone(), span, offset: 0, token };
        match self.slots.insert(InFlight { request, fixed: None, done: 0, rounds: 0 }) {
            Ok(slot) => {
                let (_, user_data) = self.slots.get(slot);
                assert!(self.flying.iter().all(|other| other.slot != slot), "a slot has one tenant");
                assert!(!self.ended.contains(&user_data), "a number that a late completion could carry");
                self.flying.push(Flying { token, op, slot, user_data, done: 0, rounds: 0 });
            }
            Err(request) => {
                assert_eq!(
                    (self.flying.len(), request.token),
                    (SLOTS, token),
                    "refused when all slots are taken, and given back"
                );
            }
        }
    }

    fn complete(&mut self, which: usize, result: impl FnOnce(&Flying) -> Result<usize, Errno>) {
        if self.flying.is_empty() {
            return;
        }
        let at = which % self.flying.len();
        let flying = &mut self.flying[at];
        let result = result(flying);
        let raw = result.map_or_else(|errno| -(errno as i32), |bytes| bytes as i32);
        let step = self.slots.complete(flying.user_data, raw, ALIGN);
        match (flying.after(result), step) {
            (Some(expected), Some(Step::Ended(Completion { token, result }))) => {
                assert_eq!((token, result), (flying.token, expected));
                self.ended.push(self.flying.swap_remove(at).user_data);
            }
            (None, Some(Step::Again(slot))) => {
                assert_eq!(slot, flying.slot);
                let (flight, user_data) = self.slots.get(slot);
                assert_eq!(user_data, flying.user_data, "what goes on keeps its number");
                if let Some(span) = &flight.request.span {
                    let rest = flight.rest(span);
                    assert_eq!((rest.offset, rest.len as usize), (flying.done as u64, BYTES - flying.done));
                    assert_eq!(rest.ptr as usize - span.ptr() as usize, flying.done);
                }
            }
            (expected, _) => panic!("expected the end {expected:?} of {:?} after {result:?}", flying.op),
        }
    }

    /// Descriptors, and with them the memory, are held by what is in flight, and by nothing else.
    fn check(&self) {
        assert_eq!((self.slots.busy(), self.slots.free()), (self.flying.len(), SLOTS - self.flying.len()));
        assert_eq!(Rc::strong_count(&self.fd), 1 + self.flying.len());
    }
}

fn cases() -> u32 {
    std::env::var("SALTERN_MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_request_ends_once_with_its_own_result_and_holds_its_memory_until_then(
        events in proptest::collection::vec(event(), 1..60)
    ) {
        let mut world = World::new();
        for event in events {
            match event {
                Event::Push(op) => world.push(op),
                Event::Moved(which, bytes) => world.complete(which, |flying| Ok(bytes.min(flying.len() - flying.done))),
                Event::Failed(which, errno) => world.complete(which, |_| Err(errno)),
                Event::Late(which) if !world.ended.is_empty() => {
                    let late = world.ended[which % world.ended.len()];
                    assert!(world.slots.complete(late, BYTES as i32, ALIGN).is_none(), "it has ended before");
                }
                Event::Late(_) => {}
            }
            world.check();
        }
    }
}

#[test]
fn what_never_comes_further_fails_in_the_end() {
    for (op, result) in [(Op::Read, -(Errno::EINTR as i32)), (Op::Write, 100)] {
        let mut world = World::new();
        world.push(op);
        for _ in 0..CONTINUE_MAX {
            let step = world.slots.complete(world.flying[0].user_data, result, ALIGN);
            assert!(matches!(step, Some(Step::Again(_))), "{op:?}");
        }
        let step = world.slots.complete(world.flying[0].user_data, result, ALIGN);
        assert!(matches!(step, Some(Step::Ended(Completion { result: Err(Errno::EIO), .. }))), "{op:?}");
    }
}
