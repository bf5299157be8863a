import Foundation

/// A tree of words by their letters, for completion of what a user types.
struct Trie<Payload> {
    private final class Node {
        var children: [Character: Node] = [:]
        var payload: Payload?
        var weight = 0
    }

    struct Match {
        let word: String
        let payload: Payload
        let weight: Int
    }

    enum TrieError: Error, CustomStringConvertible {
        case emptyWord
        case notFound(String)

        var description: String {
            switch self {
            case .emptyWord:
                return "a word must have at least one letter"
            case .notFound(let word):
                return "the word \"\(word)\" is not in the tree"
            }
        }
    }

    private let root = Node()
    private(set) var count = 0

    var isEmpty: Bool { count == 0 }

    mutating func insert(_ word: String, payload: Payload, weight: Int = 1) throws {
        guard !word.isEmpty else { throw TrieError.emptyWord }
        var node = root
        for letter in word.lowercased() {
            if let child = node.children[letter] {
                node = child
            } else {
                let child = Node()
                node.children[letter] = child
                node = child
            }
        }
        if node.payload == nil {
            count += 1
        }
        node.payload = payload
        node.weight = weight
    }

    mutating func remove(_ word: String) throws {
        guard let node = find(prefix: word), node.payload != nil else {
            throw TrieError.notFound(word)
        }
        node.payload = nil
        count -= 1
    }

    /// The heaviest words that begin with the prefix.
    func complete(_ prefix: String, limit: Int = 10) -> [Match] {
        guard let start = find(prefix: prefix) else { return [] }
        var matches: [Match] = []
        var stack: [(word: String, node: Node)] = [(prefix.lowercased(), start)]
        while let (word, node) = stack.popLast() {
            if let payload = node.payload {
                matches.append(Match(word: word, payload: payload, weight: node.weight))
            }
            for (letter, child) in node.children {
                stack.append((word + String(letter), child))
            }
        }
        // Words of the same weight are sorted by their letters.
        matches.sort { ($0.weight, $1.word) > ($1.weight, $0.word) }
        return Array(matches.prefix(limit))
    }

    private func find(prefix: String) -> Node? {
        prefix.lowercased().reduce(root as Node?) { node, letter in node?.children[letter] }
    }
}

var cities = Trie<Double>()
do {
    try cities.insert("Berlin", payload: 52.52, weight: 3_700)
    try cities.insert("Bern", payload: 46.95, weight: 134)
    try cities.insert("Bergen", payload: 60.39, weight: 290)
    for match in cities.complete("ber", limit: 2) {
        print("\(match.word): \(match.payload)° north")
    }
} catch {
    print("cannot build the tree: \(error)")
}
