//! Quantities of Kubernetes': `1k` is how it writes a thousand of a device.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A quantity that is a whole number, of bytes or devices. `None` of every other, of exponents (`1e3`), and beyond 64 bits. See
/// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.
#[must_use]
pub fn whole(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.as_str();
    let end = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let prefix = unit.trim_end_matches('i');
    let base: u64 = if prefix == unit { 1000 } else { 1024 };
    let power = match prefix {
        "" if prefix == unit => 0,
        "k" | "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        "P" => 5,
        "E" => 6,
        _ => return None,
    };
    let unit = base.checked_pow(power)?;
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// The same of devices. A number beyond 32 bits counts as the largest of 32 bits.
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
            ("1Pi", Some(1 << 50)),
            ("16E", Some(16_000_000_000_000_000_000)),
            ("1i", None),
            ("7kK", None),
            ("1e3", None),
            ("1Zi", None),
            ("500m", None),
            ("", None),
        ] {
            assert_eq!(whole(&Quantity(text.to_owned())), expected, "{text}");
        }
        assert_eq!(devices(&Quantity("5G".to_owned())), Some(u32::MAX));
    }
}
