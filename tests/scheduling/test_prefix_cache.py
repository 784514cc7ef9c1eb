from __future__ import annotations

from tandem_runtime.scheduling.prefix_cache import PageChain, PageKey, PrefixCache


def chain_of(cache: PrefixCache, salt: str, *pages: list[int]) -> PageChain:
    chain = cache.chain(salt)
    for page in pages:
        chain.append(page)
    return chain


def test_the_key_of_a_page_covers_all_that_precedes_it() -> None:
    cache = PrefixCache(b"model")
    base = chain_of(cache, "", [1, 2], [3, 4])
    assert chain_of(cache, "", [1, 2], [3, 4])[1] == base[1]
    assert chain_of(cache, "", [9, 2], [3, 4])[1] != base[1]
    assert chain_of(cache, "tenant", [1, 2], [3, 4])[0] != base[0]
    assert chain_of(PrefixCache(b"other model"), "", [1, 2])[0] != base[0]


def test_fingerprint_and_salt_do_not_run_into_one_another() -> None:
    assert PrefixCache(b"ab").chain("c")._root != PrefixCache(b"a").chain("bc")._root


def test_large_token_ids_are_distinct() -> None:
    cache = PrefixCache(b"")
    assert chain_of(cache, "", [65536, 0])[0] != chain_of(cache, "", [0, 1])[0]


def test_a_digest_collision_is_a_miss() -> None:
    """Reported against engines that trusted a short hash: another tenant's KV answered the prompt."""
    cache = PrefixCache(b"")
    key = chain_of(cache, "", [1, 2])[0]
    cache.insert(key, 7)
    assert cache.find(key) == 7
    assert cache.find(PageKey(key.digest, b"other tokens")) is None


def test_the_first_page_with_a_content_keeps_the_label() -> None:
    cache = PrefixCache(b"")
    key = chain_of(cache, "", [1, 2])[0]
    cache.insert(key, 7)
    cache.insert(key, 8)
    assert (7 in cache, 8 in cache) == (True, False)
    cache.forget(8)
    assert cache.find(key) == 7
    cache.forget(7)
    assert cache.find(key) is None
    cache.check_integrity()
