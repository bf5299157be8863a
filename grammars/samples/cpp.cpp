// A cache that forgets the entry that was used least recently.
#include <cstddef>
#include <functional>
#include <iostream>
#include <list>
#include <optional>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>

namespace cache {

template <typename Key, typename Value, typename Hash = std::hash<Key>>
class LruCache {
public:
    using Evicted = std::function<void(const Key&, const Value&)>;

    explicit LruCache(std::size_t capacity, Evicted on_evicted = nullptr)
        : capacity_(capacity), on_evicted_(std::move(on_evicted)) {
        if (capacity_ == 0) {
            throw std::invalid_argument("the capacity must be at least one");
        }
    }

    LruCache(const LruCache&) = delete;
    LruCache& operator=(const LruCache&) = delete;

    std::optional<Value> get(const Key& key) {
        auto found = index_.find(key);
        if (found == index_.end()) {
            ++misses_;
            return std::nullopt;
        }
        ++hits_;
        entries_.splice(entries_.begin(), entries_, found->second);
        return found->second->second;
    }

    void put(const Key& key, Value value) {
        if (auto found = index_.find(key); found != index_.end()) {
            found->second->second = std::move(value);
            entries_.splice(entries_.begin(), entries_, found->second);
            return;
        }
        if (entries_.size() == capacity_) {
            evict_oldest();
        }
        entries_.emplace_front(key, std::move(value));
        index_[key] = entries_.begin();
    }

    std::size_t size() const noexcept { return entries_.size(); }

    double hit_rate() const noexcept {
        const auto lookups = hits_ + misses_;
        return lookups == 0 ? 0.0 : static_cast<double>(hits_) / static_cast<double>(lookups);
    }

private:
    using Entry = std::pair<Key, Value>;

    void evict_oldest() {
        const Entry& oldest = entries_.back();
        if (on_evicted_) {
            on_evicted_(oldest.first, oldest.second);
        }
        index_.erase(oldest.first);
        entries_.pop_back();
    }

    std::size_t capacity_;
    Evicted on_evicted_;
    std::list<Entry> entries_;
    std::unordered_map<Key, typename std::list<Entry>::iterator, Hash> index_;
    std::size_t hits_ = 0;
    std::size_t misses_ = 0;
};

}  // namespace cache

int main() {
    cache::LruCache<std::string, int> lengths(2, [](const auto& word, int length) {
        std::cout << "forgot " << word << " (" << length << ")\n";
    });
    for (const std::string word : {"apple", "fig", "apple", "cherry", "plum"}) {
        if (!lengths.get(word)) {
            lengths.put(word, static_cast<int>(word.size()));
        }
    }
    std::cout << "hit rate: " << lengths.hit_rate() << '\n';
    return 0;
}
