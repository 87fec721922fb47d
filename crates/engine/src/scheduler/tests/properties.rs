//! Whatever arrives, leaves and fails.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// A request, and what happens to it.
#[derive(Debug)]
struct Story {
    request: PreparedRequest,
    stop_at: Option<usize>,
    fail_at: Option<usize>,
    /// Rounds between its arrival and its caller's going away.
    cancelled_after: Option<usize>,
    /// Rounds between the one before it and its arrival.
    pause: usize,
}

/// A prompt with pictures between stretches of text, from a small alphabet so that prefixes meet.
fn any_request() -> impl Strategy<Value = PreparedRequest> {
    let part = (1_usize..10, proptest::option::of((1_u32..3, 1_u32..4, 0_u8..2)));
    let penalty = proptest::bool::weighted(0.2);
    (proptest::collection::vec(part, 1..5), 0_usize..3, 1_usize..40, penalty).prop_map(
        |(parts, tail, max_tokens, is_penalised)| {
            let (mut len, mut pictures) = (0, Vec::new());
            for (text, image) in parts {
                len += text;
                if let Some((t, w, number)) = image {
                    // Equal hashes mean equal pictures, grids included.
                    let hash = (16 * t + 4 * w) as u8 + number;
                    pictures.push((len, picture([t, 2, 2 * w], hash)));
                    len += (t * w) as usize;
                }
            }
            let mut request = answer(with_pictures(len + 1 + tail, &pictures), max_tokens);
            request.sampling.repetition_penalty = if is_penalised { 1.2 } else { 1.0 };
            request
        },
    )
}

fn any_story() -> impl Strategy<Value = Story> {
    let sometimes = |share, range| proptest::option::weighted(share, range);
    (any_request(), sometimes(0.3, 0_usize..40), sometimes(0.1, 0..50), sometimes(0.2, 0..60), 0_usize..6).prop_map(
        |(request, stop_at, fail_at, cancelled_after, pause)| Story {
            request,
            stop_at,
            fail_at,
            cancelled_after,
            pause,
        },
    )
}

/// Small enough for sequences to be short of everything.
fn any_limits() -> impl Strategy<Value = Limits> {
    (1_usize..40, 1_usize..6, 10_usize..40, 24_usize..40, 0_usize..16).prop_map(
        |(max_num_batched_tokens, max_num_seqs, num_blocks, max_patches, more_rows)| Limits {
            page: 4,
            num_blocks,
            max_model_len: 90,
            max_num_batched_tokens,
            max_num_seqs: max_num_seqs.min(max_num_batched_tokens),
            max_patches,
            encoder_rows: 6 + more_rows,
            ..limits()
        },
    )
}

/// What the machine checks on the way: budgets, pages, users, whose turn it is, every row of every past, no news behind an
/// end. Here: everything comes to its end, in time.
fn play(stories: Vec<Story>, limits: Limits, prefix_caching: bool, depth: usize) -> Machine {
    let mut machine = Machine::with_depth(limits, depth);
    machine.scheduler = Scheduler::new(limits, machine::model(), prefix_caching);
    let mut going = Vec::new();
    let mut cut_off = HashSet::new();
    let mut round = 0;
    let step = |machine: &mut Machine, going: &mut Vec<(usize, SeqId)>, round: &mut usize| {
        going.extract_if(.., |(at, _)| *at <= *round).for_each(|(_, id)| machine.cancel(id));
        *round += 1;
        machine.step()
    };
    for Story { request, stop_at, fail_at, cancelled_after, pause } in stories {
        for _ in 0..pause {
            step(&mut machine, &mut going, &mut round);
        }
        if limits.check(&request).is_err() {
            continue;
        }
        let id = machine.send(request);
        stop_at.into_iter().for_each(|index| machine.stop_at(id, index));
        fail_at.into_iter().for_each(|row| machine.fail_at(id, row));
        going.extend(cancelled_after.map(|rounds| (round + rounds, id)));
        if fail_at.is_some() || cancelled_after.is_some() {
            cut_off.insert(id);
        }
    }
    // The oldest gets on in every third step at least, and its turn comes once for each of its rows.
    let most = 3 * machine.num_rows() + 100;
    while step(&mut machine, &mut going, &mut round) || !going.is_empty() {
        assert!(round < most, "somebody starves");
    }
    machine.check_end(|id| cut_off.contains(&id));
    machine
}

fn any_stories() -> impl Strategy<Value = Vec<Story>> {
    proptest::collection::vec(any_story(), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn everybody_gets_its_own_answer_once(
        stories in any_stories(),
        limits in any_limits(),
        prefix_caching in proptest::bool::weighted(0.8),
        depth in 1_usize..3,
    ) {
        play(stories, limits, prefix_caching, depth);
    }
}

/// The second place of a picture waits until the first one is through with it: the embeddings that it shares may be what made the
/// other request fail, and are encoded anew. Who arrived later goes on meanwhile.
#[test]
fn a_picture_twice_in_a_request_waits_for_itself_when_somebody_beside_it_failed() {
    let limits = Limits {
        page: 4,
        num_blocks: 10,
        max_model_len: 90,
        max_num_batched_tokens: 17,
        max_num_seqs: 2,
        max_patches: 24,
        encoder_rows: 6,
        ..limits()
    };
    let shared = || picture([1, 2, 6], 1);
    let story = |request, pause| Story { request, stop_at: None, fail_at: None, cancelled_after: None, pause };
    let fails = Story { fail_at: Some(0), ..story(answer(with_pictures(5, &[(1, shared())]), 2), 0) };
    let twice = story(answer(with_pictures(23, &[(15, shared()), (19, shared())]), 1), 1);
    let later = story(answer(request(&[7; 2]), 2), 0);
    let machine = play(vec![fails, twice, later], limits, false, 2);
    assert_eq!(machine.encoded(), [1, 1]);
}

/// The generators reach what they are for.
#[test]
fn random_stories_are_short_of_pages_and_find_prefixes_and_pictures() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut total = crate::EngineStats::default();
    for depth in (1..3).cycle().take(200) {
        let stories = any_stories().new_tree(&mut runner).unwrap().current();
        let limits = any_limits().new_tree(&mut runner).unwrap().current();
        let stats = play(stories, limits, true, depth).scheduler.stats();
        total.preemptions += stats.preemptions;
        total.prefix_hit_tokens += stats.prefix_hit_tokens;
        total.encoder_hits += stats.encoder_hits;
    }
    assert!(total.preemptions > 100 && total.prefix_hit_tokens > 1000 && total.encoder_hits > 100, "{total:?}");
}
