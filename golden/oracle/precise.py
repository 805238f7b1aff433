"""Elementary functions to 60 digits and more. The context carries 80, so 20 digits are guard."""

import decimal
import math
from decimal import Decimal
from fractions import Fraction

decimal.getcontext().prec = 80
# Every digit that is printed is a double's: a term below this cannot reach it.
NEGLIGIBLE = Decimal(10) ** -78


def exp(x: Decimal) -> Decimal:
    return x.exp()


def ln(x: Decimal) -> Decimal:
    return x.ln()


def sqrt(x: Decimal) -> Decimal:
    return x.sqrt()


def sqrt_rational(x: Fraction) -> Fraction:
    """The root of a fraction by an integer root, cut after 60 decimal places."""
    unit = 10**60
    return Fraction(math.isqrt(x.numerator * unit * unit // x.denominator), unit)


def pi() -> Decimal:
    """Machin: pi = 16 arctan(1/5) - 4 arctan(1/239)."""
    return 16 * _arctan_of_reciprocal(5) - 4 * _arctan_of_reciprocal(239)


def _arctan_of_reciprocal(n: int) -> Decimal:
    total, power, k = Decimal(0), 1 / Decimal(n), 0
    while abs(power) > NEGLIGIBLE:
        total += power / (2 * k + 1) * (-1) ** k
        power /= n * n
        k += 1
    return total


def sin(x: Decimal) -> Decimal:
    return _alternating_series(_reduced(x), first_power=1)


def cos(x: Decimal) -> Decimal:
    return _alternating_series(_reduced(x), first_power=0)


def _reduced(x: Decimal) -> Decimal:
    """The angle within half a turn of zero."""
    turn = 2 * PI
    return x - turn * (x / turn).to_integral_value()


def _alternating_series(x: Decimal, first_power: int) -> Decimal:
    """x^n/n! - x^(n+2)/(n+2)! + ... from `n = first_power`."""
    n, term, total = first_power, x**first_power if first_power else Decimal(1), Decimal(0)
    while abs(term) > NEGLIGIBLE:
        total += term
        term = -term * x * x / ((n + 1) * (n + 2))
        n += 2
    return total


PI = pi()
