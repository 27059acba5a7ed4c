"""Backends of two operations, to be examined as a whole in a short time."""

import numpy as np

from quantspec.backends.reference import ReferenceBackend

SOUND = ReferenceBackend("exact")


class Sound:
    """Quantizes and multiplies as the dialect says."""

    name, version, dialect = "sound", "1", "exact"

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        return SOUND.quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)

    def linear_dynamic(self, x, w_q, w, bias, *, relu=False):
        return SOUND.linear_dynamic(x, w_q, w, bias, relu=relu)


class Truncates(Sound):
    """Rounds towards zero, and says that it does not."""

    name = "truncates"

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        codes = SOUND.quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
        with np.errstate(all="ignore"):
            down = np.trunc(np.asarray(x, np.float64) / np.asarray(scale, np.float64).reshape(-1)[0])
        odd = np.isfinite(down) & (codes > qmin) & (codes < qmax) & (np.asarray(x) > 0)
        return np.where(odd, np.clip(down + np.ravel(zero_point)[0], qmin, qmax), codes).astype(codes.dtype)


class LosesBias(Sound):
    """Leaves out a bias."""

    name = "loses-bias"

    def linear_dynamic(self, x, w_q, w, bias, *, relu=False):
        return SOUND.linear_dynamic(x, w_q, w, None, relu=relu)


class OfAnotherKind(Sound):
    """Gives floats for codes."""

    def quantize(self, *arguments, **options):
        return super().quantize(*arguments, **options).astype(np.float32)
