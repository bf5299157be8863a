/*
 * A string map with open addressing and linear probing.
 * Keys are copied; values are owned by the caller.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define STRMAP_MIN_CAPACITY 16

typedef struct {
    char *key; /* NULL marks a free slot */
    void *value;
} strmap_entry;

typedef struct {
    strmap_entry *entries;
    size_t capacity; /* always a power of two */
    size_t count;
} strmap;

static uint64_t hash_string(const char *key) {
    uint64_t hash = 14695981039346656037ULL;
    for (const unsigned char *p = (const unsigned char *)key; *p != '\0'; p++) {
        hash ^= *p;
        hash *= 1099511628211ULL;
    }
    return hash;
}

bool strmap_init(strmap *map) {
    map->entries = calloc(STRMAP_MIN_CAPACITY, sizeof *map->entries);
    map->capacity = map->entries != NULL ? STRMAP_MIN_CAPACITY : 0;
    map->count = 0;
    return map->entries != NULL;
}

void strmap_free(strmap *map) {
    for (size_t i = 0; i < map->capacity; i++) {
        free(map->entries[i].key);
    }
    free(map->entries);
    memset(map, 0, sizeof *map);
}

/* Returns the slot that holds the key, or the free slot where it belongs. */
static strmap_entry *find_slot(strmap_entry *entries, size_t capacity, const char *key) {
    size_t index = (size_t)hash_string(key) & (capacity - 1);
    while (entries[index].key != NULL && strcmp(entries[index].key, key) != 0) {
        index = (index + 1) & (capacity - 1);
    }
    return &entries[index];
}

static bool grow(strmap *map) {
    size_t capacity = map->capacity * 2;
    strmap_entry *entries = calloc(capacity, sizeof *entries);
    if (entries == NULL) {
        return false;
    }
    for (size_t i = 0; i < map->capacity; i++) {
        if (map->entries[i].key != NULL) {
            *find_slot(entries, capacity, map->entries[i].key) = map->entries[i];
        }
    }
    free(map->entries);
    map->entries = entries;
    map->capacity = capacity;
    return true;
}

void *strmap_get(const strmap *map, const char *key) {
    if (map->count == 0) {
        return NULL;
    }
    return find_slot(map->entries, map->capacity, key)->value;
}

bool strmap_set(strmap *map, const char *key, void *value) {
    if ((map->count + 1) * 4 > map->capacity * 3 && !grow(map)) {
        return false;
    }
    strmap_entry *entry = find_slot(map->entries, map->capacity, key);
    if (entry->key == NULL) {
        size_t length = strlen(key) + 1;
        entry->key = malloc(length);
        if (entry->key == NULL) {
            return false;
        }
        memcpy(entry->key, key, length);
        map->count++;
    }
    entry->value = value;
    return true;
}
