package org.example.csv

import java.io.Reader
import java.io.StringReader

/** How a file separates and quotes its fields. */
data class CsvFormat(
    val separator: Char = ',',
    val quote: Char = '"',
    val trimFields: Boolean = false,
) {
    init {
        require(separator != quote) { "separator and quote must differ, both are '$quote'" }
    }
}

class CsvException(val line: Int, message: String) : Exception("line $line: $message")

/** One record, with fields by position and by the name in the header. */
class CsvRecord(private val header: Map<String, Int>, val fields: List<String>) {
    operator fun get(index: Int): String = fields[index]

    operator fun get(name: String): String? = header[name]?.let { fields.getOrNull(it) }

    override fun toString(): String = fields.joinToString(prefix = "[", postfix = "]")
}

class CsvParser(private val reader: Reader, private val format: CsvFormat = CsvFormat()) {
    private var line = 1
    private var pending: Int = reader.read()

    fun records(): Sequence<CsvRecord> = sequence {
        val names = readFields() ?: return@sequence
        val header = names.withIndex().associate { (index, name) -> name to index }
        while (true) {
            val fields = readFields() ?: break
            if (fields.size > names.size) {
                throw CsvException(line - 1, "${fields.size} fields where the header has ${names.size}")
            }
            yield(CsvRecord(header, fields))
        }
    }

    private fun next(): Int {
        val current = pending
        pending = reader.read()
        if (current == '\n'.code) line++
        return current
    }

    private fun readFields(): List<String>? {
        if (pending < 0) return null
        val fields = mutableListOf<String>()
        while (true) {
            val text = if (pending == format.quote.code) readQuoted() else readPlain()
            fields += if (format.trimFields) text.trim() else text
            when (next()) {
                format.separator.code -> continue
                '\r'.code -> if (pending == '\n'.code) next()
            }
            return fields
        }
    }

    private fun readPlain(): String = buildString {
        while (pending >= 0 && pending != format.separator.code && pending.toChar() !in "\r\n") {
            append(next().toChar())
        }
    }

    // A doubled quote inside a quoted field stands for one quote.
    private fun readQuoted(): String = buildString {
        val start = line
        next()
        while (true) {
            val c = next()
            when {
                c < 0 -> throw CsvException(start, "the quoted field does not end")
                c != format.quote.code -> append(c.toChar())
                pending == format.quote.code -> append(next().toChar())
                else -> return@buildString
            }
        }
    }
}

fun main() {
    val text = "name,city\n\"Hopper, Grace\",Arlington\nLovelace,London\n"
    CsvParser(StringReader(text)).records()
        .filter { it["city"] != null }
        .forEach { record -> println("${record["name"]} lives in ${record[1]}") }
}
