//! A chat's body, up to where its pictures would be fetched: JSON, the lists of parameters, typed fields, messages.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let _ = foveal_server::fuzz_chat_request(body);
});
