"""The meter measures a learned critic of a decoder, beside a rule without one."""

import numpy as np
from meter_examples import decoder_subject, rule

from forkpoint.config.critic import CriticSettings
from forkpoint.meter.reading import Extent, take_reading
from forkpoint.meter.subject import give_credit
from forkpoint.meter.truth import Tier


def quiet(*_):
    pass


def test_a_critic_is_fitted_to_batches_of_its_own_and_measured():
    subject = decoder_subject(problems=4, group_size=8, values=CriticSettings(epochs=2))
    extent = Extent(tier=Tier.ENUMERATION, batches=0)
    found = {
        each.name: each for each in take_reading(subject, [rule("leave_one_out"), rule("critic")], extent, quiet).rules
    }
    correlations = {name: each.measures["pearson"].value for name, each in found.items()}
    assert np.isfinite(correlations["critic"])
    assert found["critic"].cost["relative"] == 1.0


def test_the_same_subject_gives_the_same_critic():
    subject = decoder_subject(problems=2, group_size=4)
    batch = subject.batch(subject.probe("batch"), "a")
    one, two = subject.critic(), subject.critic()
    for mine, theirs in zip(one.values(batch.rollouts), two.values(batch.rollouts), strict=True):
        assert mine.tolist() == theirs.tolist()
    given = give_credit(rule("critic"), batch, subject.probe("rule", one))
    first = one.values(batch.rollouts)[0]
    reward = batch.groups[0].rewards[0].total
    np.testing.assert_allclose(given.credits[0].advantages, reward - first, atol=1e-6)
