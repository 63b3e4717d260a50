//! Quantities of Kubernetes': `1k` is how it writes a thousand of a device.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A quantity that is a whole number, of bytes or devices. `None` of every other, and beyond 64 bits. See
/// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.
#[must_use]
pub fn whole(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.as_str();
    let end = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let base: u64 = if unit.ends_with('i') { 1024 } else { 1000 };
    let powers = ["", "kK", "M", "G", "T"];
    let prefix = unit.trim_end_matches('i');
    let power = powers
        .iter()
        .position(|p| *p == prefix || !prefix.is_empty() && p.contains(prefix))?;
    let unit = base.checked_pow(u32::try_from(power).ok()?)?;
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// The same of devices. More than 32 bits hold are as many as they hold.
#[must_use]
pub fn devices(quantity: &Quantity) -> Option<u32> {
    Some(u32::try_from(whole(quantity)?).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantity_is_read_as_kubernetes_does() {
        for (text, expected) in [
            ("64Mi", Some(67_108_864)),
            ("1G", Some(1_000_000_000)),
            ("2Ti", Some(2_199_023_255_552)),
            ("7k", Some(7000)),
            ("7Ki", Some(7168)),
            ("100", Some(100)),
            ("9999999999999999Ti", None),
            ("1Zi", None),
            ("500m", None),
            ("", None),
        ] {
            assert_eq!(whole(&Quantity(text.to_owned())), expected, "{text}");
        }
        assert_eq!(devices(&Quantity("5G".to_owned())), Some(u32::MAX));
    }
}
