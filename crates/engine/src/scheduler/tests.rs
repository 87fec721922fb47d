//! The state machine against a model of a device that remembers what every slot holds.

mod machine;
mod properties;

use super::testing::{limits, picture, request, with_pictures};
use super::*;
use foveal_types::{SamplingParams, TokenId, Usage};
use machine::{Ended, Machine};

fn answer(request: PreparedRequest, max_tokens: usize) -> PreparedRequest {
    let sampling = SamplingParams { max_tokens: Some(max_tokens), ..request.sampling };
    PreparedRequest { sampling, ..request }
}

#[test]
fn a_prompt_runs_in_chunks_and_its_answer_ends_at_the_stop_token() {
    for depth in [1, 2] {
        let mut machine = Machine::with_depth(limits(), depth);
        let id = machine.send(request(&[3; 40]));
        machine.stop_at(id, 3);
        machine.run();
        assert_eq!(machine.prefill(id), [0, 16, 32, 40]);
        let usage = Usage { prompt_tokens: 40, image_tokens: 0, cached_tokens: 0, completion_tokens: 4 };
        assert_eq!(machine.usage(id), (FinishReason::Stop, usage));
        // The stop token is computed in surplus only by who runs ahead.
        assert_eq!(machine.num_computed_rows(), 42 + depth);
        machine.check_end(|_| false);
    }
}

#[test]
fn a_length_is_known_in_advance_and_costs_no_surplus_step() {
    for depth in [1, 2] {
        let mut machine = Machine::with_depth(limits(), depth);
        machine.send(answer(request(&[3; 10]), 4));
        machine.run();
        assert_eq!((machine.num_computed_rows(), machine.num_steps), (13, 4));
    }
}

#[test]
fn an_answer_ends_with_the_room_for_it() {
    for depth in [1, 2] {
        let mut machine = Machine::with_depth(Limits { max_model_len: 50, ..limits() }, depth);
        let id = machine.send(request(&[3; 40]));
        machine.run();
        assert_eq!(machine.usage(id).0, FinishReason::Length);
        assert_eq!(machine.usage(id).1.completion_tokens, 10);
        let mut machine = Machine::with_depth(Limits { num_blocks: 2, ..limits() }, depth);
        let id = machine.send(request(&[3; 40]));
        machine.run();
        assert_eq!(machine.usage(id).1.completion_tokens, 24);
    }
}

#[test]
fn an_answer_ends_where_the_positions_end() {
    // A slow video's positions run 7 ahead of its tokens.
    let mut slow = PreparedRequest { rope_delta: 7, ..request(&[3; 40]) };
    (0..3).for_each(|axis| slow.positions[axis * 40 + 39] = 46);
    let mut machine = Machine::new(Limits { max_model_len: 50, ..limits() });
    let id = machine.send(slow);
    machine.run();
    assert_eq!(machine.usage(id).0, FinishReason::Length);
    assert_eq!(machine.usage(id).1.completion_tokens, 3);
}

#[test]
fn stop_tokens_of_the_request_and_ignored_ones() {
    let mut machine = Machine::new(limits());
    // The device gives 5 + len % 3 behind `len` tokens.
    let own = SamplingParams { stop_token_ids: vec![TokenId(6)], ..SamplingParams::default() };
    let id = machine.send(PreparedRequest { sampling: own, ..request(&[3; 4]) });
    machine.run();
    assert_eq!(machine.usage(id).1.completion_tokens, 1);
    let ignore = SamplingParams { ignore_eos: true, max_tokens: Some(6), ..SamplingParams::default() };
    let id = machine.send(PreparedRequest { sampling: ignore, ..request(&[3; 4]) });
    machine.stop_at(id, 2);
    machine.run();
    assert_eq!((machine.usage(id).0, machine.usage(id).1.completion_tokens), (FinishReason::Length, 6));
}

#[test]
fn an_answer_that_has_no_room_for_its_fewest_tokens_is_refused() {
    let limits = limits();
    let with = |min_tokens: usize| {
        let sampling = SamplingParams { min_tokens, ..SamplingParams::default() };
        limits.check(&PreparedRequest { sampling, ..request(&[3; 4]) })
    };
    let room = limits.max_seq_len() - 4;
    assert!(with(room).is_ok());
    let error = with(room + 1).unwrap_err();
    assert_eq!((error.code, error.param.as_deref()), ("invalid_value", Some("min_tokens")));
}

#[test]
fn a_stop_token_outside_of_the_vocabulary_is_refused() {
    let limits = limits();
    let with = |id: usize| {
        let sampling = SamplingParams { stop_token_ids: vec![TokenId(id as u32)], ..SamplingParams::default() };
        limits.check(&PreparedRequest { sampling, ..request(&[3; 4]) })
    };
    assert!(with(limits.vocab_size - 1).is_ok());
    let error = with(limits.vocab_size).unwrap_err();
    assert_eq!((error.code, error.param.as_deref()), ("invalid_value", Some("stop_token_ids")));
}

#[test]
fn rows_of_answers_and_chunks_of_prompts_share_steps() {
    let mut machine = Machine::new(limits());
    let first = machine.send(answer(request(&[3; 10]), 8));
    let second = machine.send(answer(request(&[4; 30]), 2));
    let third = machine.send(answer(request(&[5; 2]), 1));
    machine.run();
    // 10 + 6, then 1 + 15, then 1 + 9 + 2, then 1 + 1, then four rows of the first answer.
    assert_eq!(machine.num_steps, 8);
    assert_eq!(machine.prefill(second), [0, 6, 21, 30]);
    assert_eq!(machine.prefill(third), [0, 2], "it starts as soon as a step has room for it");
    assert_eq!(machine.usage(first).1.completion_tokens, 8);
}

#[test]
fn no_more_sequences_run_than_may() {
    let mut machine = Machine::new(Limits { max_num_seqs: 2, ..limits() });
    let ids: Vec<_> = (0..3).map(|_| machine.send(answer(request(&[3; 2]), 3))).collect();
    machine.step();
    assert_eq!((machine.scheduler.stats().running, machine.scheduler.stats().waiting), (2, 1));
    machine.run();
    assert_eq!(machine.num_steps, 6);
    assert!(ids.iter().all(|id| machine.usage(*id).1.completion_tokens == 3));
}

#[test]
fn lent_pixels_go_back_when_their_rows_are_computed() {
    let mut machine = Machine::new(limits());
    let pictures: Vec<_> = (0..4_u8).map(|i| (1 + 9 * usize::from(i), picture([1, 4, 8], i))).collect();
    let id = machine.send(answer(with_pictures(40, &pictures), 30));
    assert!(machine.step() && machine.step());
    assert_eq!(machine.lent_pixels(id), [false, true, true, true], "16 rows hold one whole picture");
    while machine.prefill(id).last() != Some(&40) {
        machine.step();
    }
    assert_eq!(machine.lent_pixels(id), [false; 4], "while the answer is written");
    // A request that is cut off before its pictures were encoded leaves nothing lent, either.
    let cut_off = machine.send(with_pictures(60, &[(40, picture([1, 4, 8], 9))]));
    machine.step();
    machine.cancel(cut_off);
    machine.run();
    assert_eq!(machine.lent_pixels(cut_off), [false]);
}

#[test]
fn the_next_turn_of_a_chat_takes_over_the_pages_and_the_picture() {
    let mut machine = Machine::new(Limits { page: 8, num_blocks: 32, ..limits() });
    let first = answer(with_pictures(30, &[(4, picture([1, 4, 8], 1))]), 5);
    let id = machine.send(first.clone());
    machine.run();
    assert_eq!(machine.usage(id).1.image_tokens, 8);
    // The next turn: the first one, its answer, and a new question.
    let mut second = answer(with_pictures(60, &[(4, picture([1, 4, 8], 1))]), 5);
    second.input_ids[30..35].copy_from_slice(&[5, 6, 7, 5, 6].map(TokenId));
    let id = machine.send(second.clone());
    machine.run();
    // The answer's last token was never computed, and only full pages are found.
    assert_eq!(machine.usage(id).1.cached_tokens, 32);
    assert_eq!(machine.encoded(), [1], "the picture is not encoded again");
    // Another picture in its place: only the pages before it are common, and there are none.
    let mut third = second.clone();
    third.images[0].hash = picture([1, 4, 8], 2).hash;
    third.images[0].pixels = picture([1, 4, 8], 2).pixels;
    let id = machine.send(third);
    machine.run();
    assert_eq!(machine.usage(id).1.cached_tokens, 0);
    assert_eq!(machine.encoded(), [1, 2]);
    // The same request again: the last row is computed anew, and with it its page.
    let id = machine.send(answer(request(&[3; 24]), 1));
    machine.run();
    assert_eq!(machine.usage(id).1.cached_tokens, 0);
    let id = machine.send(answer(request(&[3; 24]), 1));
    machine.run();
    assert_eq!(machine.usage(id).1.cached_tokens, 16);
    assert_eq!(machine.scheduler.stats().prefix_hit_tokens, 48);
}

#[test]
fn two_that_run_at_once_share_their_pages() {
    let limits = Limits { page: 8, num_blocks: 6, max_num_batched_tokens: 32, ..limits() };
    let mut machine = Machine::new(limits);
    let first = machine.send(answer(request(&[3; 26]), 6));
    machine.step();
    machine.step();
    // Four pages each, three of them shared: without that, the second would have to wait.
    let second = machine.send(answer(request(&[3; 26]), 3));
    machine.step();
    assert_eq!((machine.scheduler.stats().running, machine.scheduler.stats().kv_pages_used), (2, 5));
    machine.run();
    assert_eq!((machine.usage(first).1.cached_tokens, machine.usage(second).1.cached_tokens), (0, 24));
    machine.check_end(|_| false);
}

#[test]
fn nothing_is_found_when_prefix_caching_is_off() {
    let mut machine = Machine::new(limits());
    machine.scheduler = Scheduler::new(limits(), machine::model(), false);
    for _ in 0..2 {
        let id = machine.send(answer(request(&[3; 80]), 2));
        machine.run();
        assert_eq!(machine.usage(id).1.cached_tokens, 0);
    }
    machine.check_end(|_| false);
}

#[test]
fn a_cached_picture_is_not_encoded_for_another_request_and_a_shared_one_once_for_two() {
    let mut machine = Machine::new(Limits { max_num_batched_tokens: 64, ..limits() });
    let ask = |id: u32, number| {
        let mut request = answer(with_pictures(12, &[(2, picture([1, 4, 4], number))]), 1);
        request.input_ids[0] = TokenId(id);
        request
    };
    machine.send(ask(1, 1));
    machine.send(ask(2, 1));
    machine.send(ask(3, 2));
    machine.run();
    assert_eq!((machine.encoded(), machine.num_steps), (vec![1, 2], 1), "in one batch");
    machine.send(ask(4, 1));
    machine.run();
    assert_eq!(machine.encoded(), [1, 2]);
    assert_eq!(machine.scheduler.stats().encoder_hits, 2);
}

#[test]
fn pictures_beyond_the_workspace_are_encoded_in_turns() {
    // 64 patches a step, 32 for each picture; 16 rows a step.
    let pictures: Vec<_> = (0..4_u8).map(|i| (1 + 9 * usize::from(i), picture([1, 4, 8], i))).collect();
    let mut machine = Machine::new(Limits { max_num_batched_tokens: 64, ..limits() });
    let id = machine.send(answer(with_pictures(40, &pictures), 3));
    machine.run();
    assert_eq!(machine.encoded(), [0, 1, 2, 3]);
    assert_eq!(machine.prefill(id), [0, 19, 40], "a chunk ends before the picture that has to wait");
}

#[test]
fn the_youngest_makes_room_and_keeps_its_answer() {
    for depth in [1, 2] {
        // Ten pages of four rows; each request comes to eight.
        let small = Limits { page: 4, num_blocks: 10, ..limits() };
        let mut machine = Machine::with_depth(small, depth);
        let ids = [10, 11].map(|token| machine.send(answer(request(&[token; 12]), 20)));
        machine.run();
        assert!(machine.scheduler.stats().preemptions > 0);
        for id in ids {
            assert_eq!(machine.usage(id).1.completion_tokens, 20);
        }
        machine.check_end(|_| false);
    }
}

#[test]
fn the_picture_of_who_made_room_is_encoded_from_a_copy() {
    // One picture's room: the other request's picture takes it meanwhile.
    let small = Limits { page: 4, num_blocks: 10, encoder_rows: 4, max_num_batched_tokens: 64, ..limits() };
    let mut machine = Machine::new(small);
    machine.send(answer(request(&[3; 12]), 24));
    machine.send(answer(with_pictures(12, &[(2, picture([1, 4, 4], 1))]), 12));
    machine.step();
    machine.run();
    assert!(machine.scheduler.stats().preemptions > 0);
    machine.check_end(|_| false);
}

#[test]
fn cancelling_frees_the_place_at_once() {
    for depth in [1, 2] {
        let mut machine = Machine::with_depth(Limits { max_num_seqs: 1, ..limits() }, depth);
        let running = machine.send(request(&[3; 40]));
        let waiting = machine.send(request(&[4; 10]));
        let last = machine.send(answer(request(&[6; 10]), 2));
        assert!(machine.step());
        machine.cancel(running);
        machine.cancel(waiting);
        machine.cancel(waiting);
        machine.step();
        assert_eq!(machine.usage(running).0, FinishReason::Cancelled);
        assert_eq!(machine.usage(waiting).0, FinishReason::Cancelled);
        assert_eq!(machine.scheduler.stats().running, 1, "its place is taken in the same step");
        machine.run();
        assert_eq!(machine.usage(last).1.completion_tokens, 2);
        machine.check_end(|id| id != last);
    }
}

#[test]
fn a_failed_sequence_leaves_nothing_behind() {
    for depth in [1, 2] {
        let mut machine = Machine::with_depth(Limits { page: 4, num_blocks: 32, ..limits() }, depth);
        let bad = machine.send(request(&[3; 20]));
        let beside = machine.send(answer(request(&[4; 20]), 2));
        machine.fail_at(bad, 18);
        machine.run();
        assert!(matches!(&machine.asked[&bad].ends[..], [Ended::Failed(Error::Request(_))]));
        assert_eq!(machine.usage(beside).1.completion_tokens, 2);
        let good = machine.send(answer(request(&[3; 20]), 2));
        machine.run();
        assert_eq!(machine.usage(good).1.cached_tokens, 0, "its pages may hold NaN, the early ones too");
        machine.check_end(|id| id == bad);
    }
}

#[test]
fn the_picture_of_a_failed_sequence_is_encoded_again() {
    for depth in [1, 2] {
        let mut machine = Machine::with_depth(limits(), depth);
        let ask = || answer(with_pictures(12, &[(2, picture([1, 4, 4], 1))]), 3);
        let bad = machine.send(ask());
        machine.fail_at(bad, 4);
        machine.run();
        machine.send(ask());
        machine.run();
        assert_eq!(machine.encoded(), [1, 1], "its embeddings may be what failed");
        machine.check_end(|id| id == bad);
    }
}

#[test]
fn an_executor_that_breaks_its_word_fails_the_sequence() {
    let mut scheduler = Scheduler::new(limits(), machine::model(), true);
    for id in 0..2 {
        scheduler.step(vec![Event::Arrived(SeqId(id), Box::new(request(&[3; 4])))]);
    }
    // The first is asked for a token in step 0; both are in step 1.
    let token = TokenOutput { token_id: TokenId(5), logprob: None, logprobs: None };
    let plan = scheduler.step(vec![Event::Completed(StepResults { step: 0, sequences: vec![Ok(None)] })]);
    assert!(matches!(&plan.news[..], [News::Failed(SeqId(0), Error::Device(_))]));
    let plan =
        scheduler.step(vec![Event::Completed(StepResults { step: 1, sequences: vec![Ok(None), Ok(Some(token))] })]);
    assert!(plan.news.iter().any(|news| matches!(news, News::Delta(SeqId(1), Delta::Token(_)))), "{plan:?}");
}

#[test]
fn who_needs_its_last_token_on_the_host_is_not_run_ahead() {
    let sampling = SamplingParams { presence_penalty: 1.0, max_tokens: Some(4), ..SamplingParams::default() };
    let mut machine = Machine::with_depth(limits(), 2);
    machine.send(PreparedRequest { sampling, ..request(&[3; 4]) });
    machine.run();
    machine.check_end(|_| false);
    assert_eq!(machine.num_steps, 4);
}
