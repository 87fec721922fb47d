//! Requests that are refused in words, and before their pictures are decoded.

mod common;

use common::{golden_processor, noise_picture, prepare, text, tiny, user};
use foveal_processor::{
    ChatRequest, ContentPart, ImageInput, Limits, Message, PictureError, Processor, ProcessorError, Role, VideoFrames,
    VideoMeta,
};

/// A search of the text for each candidate would take minutes here.
#[test]
fn a_text_that_leaves_no_marker_is_refused() {
    let all: String = ('\u{F0000}'..='\u{FFFFD}').chain('\u{100000}'..='\u{10FFFD}').collect();
    let words = format!("{}{all}", "x".repeat((16 << 20) - all.len()));
    let error = prepare(&tiny(), &user(vec![text(&words)])).expect_err("no marker is left");
    assert_eq!(error, ProcessorError::NoMarkerLeft);
    assert!(matches!(foveal_types::Error::from(error), foveal_types::Error::Request(_)));
}

#[test]
fn video_settings_alone_are_refused() {
    let read = |name: &str| {
        let of_the_image = match name {
            "preprocessor_config.json" => return None,
            "video_preprocessor_config.json" => "preprocessor_config.json",
            name => name,
        };
        std::fs::read(common::fixture("tiny").join(of_the_image)).ok().map(std::borrow::Cow::Owned)
    };
    let error =
        foveal_processor::Processor::from_reader(read, common::settings("tiny")).expect_err("half the settings");
    assert!(matches!(error, ProcessorError::MissingFile { file: "preprocessor_config.json", .. }), "{error:?}");
}

#[test]
fn every_public_picture_is_prepared_or_refused_in_words() {
    let Some(folder) = common::assets("images") else { return };
    for family in ["tiny", "qwen2_vl"] {
        let processor = golden_processor(family);
        for entry in std::fs::read_dir(&folder).expect("pictures") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|n| n.to_str()).expect("a name").to_owned();
            if name.ends_with(".md") || name.ends_with(".json") {
                continue;
            }
            let image = ImageInput::Bytes(std::fs::read(&path).expect("a file").into());
            match prepare(&processor, &user(vec![ContentPart::Image(image), text("What is it?")])) {
                Ok(request) => assert_eq!(request.images.len(), 1),
                Err(error) => {
                    let known = name.starts_with("bad_") || name == "wide_251to1_over_limit.png";
                    assert!(known, "{name}: {error}");
                    eprintln!("{name}: {error}");
                    let class = foveal_types::Error::from(error);
                    assert!(
                        matches!(class, foveal_types::Error::Request(e) if matches!(e.code, "invalid_image" | "image_too_large"))
                    );
                }
            }
        }
    }
}

#[test]
fn limits_of_a_request_hold() {
    let with = |limits: Limits| {
        let read = |name: &str| std::fs::read(common::fixture("tiny").join(name)).ok().map(Into::into);
        let settings = foveal_processor::ProcessorSettings { limits, max_model_len: 300, ..common::settings("tiny") };
        Processor::from_reader(read, settings).expect("a processor")
    };
    let two = user(vec![ContentPart::Image(noise_picture(64, 64)), ContentPart::Image(noise_picture(64, 64))]);
    let error = prepare(&with(Limits { max_images_per_request: 1, ..Limits::default() }), &two).expect_err("too many");
    assert_eq!(error, ProcessorError::TooManyPictures { pictures: 2, max_pictures: 1 });
    let decoded = 64 * 64 * 3 * 2;
    let processor = with(Limits { max_total_decoded_bytes: decoded - 1, ..Limits::default() });
    assert!(
        matches!(prepare(&processor, &two), Err(ProcessorError::TooManyDecodedBytes { decoded_bytes, .. }) if decoded_bytes == decoded)
    );
    assert_eq!(processor.num_decoded_pictures(), 0, "refused before decoding");
    let processor = with(Limits::default());
    prepare(&processor, &two).expect("it fits");
    let large = user(vec![ContentPart::Image(noise_picture(1000, 700))]);
    let before = processor.num_decoded_pictures();
    assert!(matches!(prepare(&processor, &large), Err(ProcessorError::TooLong { max_model_len: 300, .. })));
    assert_eq!(processor.num_decoded_pictures(), before, "refused before decoding");
    let chat = ChatRequest::new(vec![Message::text(Role::User, "word ".repeat(100))]);
    let error = prepare(&with(Limits { max_text_bytes: 499, ..Limits::default() }), &chat).expect_err("too much");
    assert_eq!(error, ProcessorError::TooMuchText { len_bytes: 500, max_bytes: 499 });
    let strip = user(vec![text("see"), ContentPart::Image(noise_picture(1, 201))]);
    let error = prepare(&processor, &strip).expect_err("a strip");
    assert!(
        matches!(&error, ProcessorError::Picture { index: 0, param, source: PictureError::AspectRatio { .. } } if param == "messages[0].content[1]")
    );
    let foveal_types::Error::Request(request) = error.into() else { panic!("the request is wrong") };
    assert_eq!((request.code, request.param.as_deref()), ("invalid_image", Some("messages[0].content[1]")));
}

#[test]
fn wrong_videos_are_refused() {
    let processor = tiny();
    let video = |sizes: &[(u32, u32)], indices: Vec<u32>, source_fps: f64| {
        let frames = sizes.iter().map(|&(w, h)| noise_picture(w, h)).collect();
        let meta = VideoMeta { source_fps, total_num_frames: 10, frame_indices: indices };
        let error = prepare(&processor, &user(vec![ContentPart::Video(VideoFrames { frames, meta })]));
        let ProcessorError::Picture { source, .. } = error.expect_err("a wrong video") else { panic!("the picture") };
        source
    };
    let square = (64, 64);
    assert!(matches!(video(&[], vec![], 1.0), PictureError::TooFewFrames { frames: 0, .. }));
    assert!(matches!(video(&[square], vec![0], 1.0), PictureError::TooFewFrames { frames: 1, min_frames: 2 }));
    assert!(matches!(video(&[square, square], vec![0], 1.0), PictureError::VideoMeta { .. }));
    assert!(matches!(video(&[square, square], vec![0, 1], 0.0), PictureError::VideoMeta { .. }));
    assert!(matches!(video(&[square, (64, 65)], vec![0, 1], 1.0), PictureError::FrameSize { frame: 1, .. }));
}

#[test]
fn a_template_that_writes_other_placeholders_is_a_mismatch() {
    let with_template = |template: &'static str| {
        let read = move |name: &str| match name {
            "chat_template.jinja" => Some(template.as_bytes().into()),
            _ => std::fs::read(common::fixture("tiny").join(name)).ok().map(Into::into),
        };
        Processor::from_reader(read, common::settings("tiny")).expect("a processor")
    };
    let chat = user(vec![ContentPart::Image(noise_picture(64, 64)), text("x")]);
    let error = prepare(&with_template("x"), &chat).expect_err("none");
    assert!(matches!(error, ProcessorError::PlaceholderMismatch { placeholders: 0, pictures: 1, .. }));
    let error = prepare(&with_template("<|image_pad|><|image_pad|>"), &chat).expect_err("two");
    assert!(matches!(error, ProcessorError::PlaceholderMismatch { placeholders: 2, pictures: 1, .. }));
    let error = prepare(&with_template("<|video_pad|>"), &chat).expect_err("a video");
    assert!(error.to_string().ends_with("number 0 is a video and not a picture"), "{error}");
    let foveal_types::Error::Request(request) = error.into() else { panic!("the request is wrong") };
    assert_eq!(request.code, "invalid_prompt");
    prepare(&with_template("<|vision_start|><|image_pad|><|vision_end|>"), &chat).expect("one");
}
