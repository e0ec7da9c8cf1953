//! Whether something holds, when not everything is known.

/// In the order of their strength: the strongest of alternatives decides, the weakest of requirements does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Tri {
    No,
    /// On what is not known: the request, or for the kernel's plan the addresses.
    Depends,
    Yes,
}

impl Tri {
    /// Of something that is known, or is not.
    pub(super) fn of(holds: Option<bool>) -> Self {
        match holds {
            None => Self::Depends,
            Some(true) => Self::Yes,
            Some(false) => Self::No,
        }
    }

    /// Several that depend may or may not cover everything.
    pub(super) fn any(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut strongest = Self::No;
        for part in parts {
            strongest = strongest.max(part);
            if strongest == Self::Yes {
                break;
            }
        }
        strongest
    }

    pub(super) fn all(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut weakest = Self::Yes;
        for part in parts {
            weakest = weakest.min(part);
            if weakest == Self::No {
                break;
            }
        }
        weakest
    }
}
