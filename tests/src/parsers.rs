//! What fuzzing tries of every parser, and what replaying the corpus tries again: any bytes are taken or refused, without a
//! panic, and what is taken is taken the same way twice.

pub use saltern::fuzzing::{quotas, snapshot, stamp, volume};
use saltern::layout::{Decoder, detect, wire};
use saltern::{Config, Layout};

/// A parser's name, and what is tried of it.
pub type Parser = (&'static str, fn(&[u8]));

/// All of them; the names are those of the corpus's directories.
pub const PARSERS: [Parser; 7] = [
    ("names", names),
    ("wire", wire_keys),
    ("snapshot", snapshot),
    ("quotas", quotas),
    ("config", config),
    ("stamp", stamp),
    ("volume", volume),
];

/// File names, in every layout: what decodes has the name that it came from.
///
/// # Panics
/// When it has not.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for layout in Layout::ALL {
        let mut decoder = Decoder::new(layout);
        let first = layout.decode(text);
        if let Ok(key) = &first {
            assert_eq!(layout.encode(key).as_deref(), Ok(text), "{layout}");
        }
        for _ in 0..2 {
            assert_eq!(
                decoder.decode(text).ok(),
                first.as_ref().ok().cloned(),
                "{layout}: a decoder of many names differs"
            );
        }
    }
    let _ = detect::detect(text.lines());
}

/// Keys of the native connector.
///
/// # Panics
/// When one does not survive the way back.
pub fn wire_keys(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(key) = wire::decode(text) {
        assert_eq!(wire::encode(&key), text);
    }
    if let Ok(key) = wire::decode3(text) {
        assert_eq!(wire::encode3(&key).as_deref(), Ok(text));
    }
    let _ = Decoder::wire().decode(text);
}

/// A configuration in JSON: what is taken is valid or says what is not, and is read back as it was written.
///
/// # Panics
/// When it is not.
pub fn config(data: &[u8]) {
    let Ok(config) = serde_json::from_slice::<Config>(data) else { return };
    let _ = config.validate();
    let text = serde_json::to_string(&config).expect("a configuration is JSON");
    let again: Config = serde_json::from_str(&text).expect("what was written is read");
    assert_eq!(text, serde_json::to_string(&again).expect("a configuration is JSON"));
}
