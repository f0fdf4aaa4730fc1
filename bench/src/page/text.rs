//! Numbers, dates and foreign text as the page has them.

/// `256 KiB`.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

/// `200 µs`, `5 ms`.
pub(super) fn time(us: f64) -> String {
    let (value, unit) = match us {
        us if us >= 0.999e6 => (us / 1e6, "s"),
        us if us >= 0.999e3 => (us / 1e3, "ms"),
        us => (us, "µs"),
    };
    format!("{} {unit}", (value * 10.0).round() / 10.0)
}

/// `0.05`: a tick of a logarithmic axis, without what computing it left behind.
pub(super) fn tick(value: f64) -> String {
    format!("{}", (value * 1e6).round() / 1e6)
}

/// `99.9%`.
pub(super) fn percentile(share: f64) -> String {
    format!("{}%", (share * 1e6).round() / 1e4)
}

/// `2026-02-28 23:59 UTC`.
pub(super) fn date(unix_seconds: u64) -> String {
    let (days, seconds) = (unix_seconds / 86_400, unix_seconds % 86_400);
    // Counted from 1 March of year 0, so that the leap day is the last of its year; an era has 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60)
}

/// Text from elsewhere, harmless in HTML.
pub(super) fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_units() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_868_799), "2000-02-29 23:59 UTC");
        assert_eq!(date(1_772_323_200), "2026-03-01 00:00 UTC");
        assert_eq!([0.5, 0.9, 0.999, 0.9999].map(percentile), ["50%", "90%", "99.9%", "99.99%"]);
        assert_eq!([20.0, 1.5e3, 1e6].map(time), ["20 µs", "1.5 ms", "1 s"]);
        assert_eq!([0.2, 0.005, 50.0].map(|value: f64| tick(10_f64.powf(value.log10()))), ["0.2", "0.005", "50"]);
        assert_eq!([4 << 20, 64 << 10, 5001].map(size), ["4 MiB", "64 KiB", "5001 B"]);
        assert_eq!(escape("<a&b>\u{7}"), "&lt;a&amp;b&gt;\u{fffd}");
    }
}
