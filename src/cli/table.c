/* table.c - see table.h. Widths are counted in characters (UTF-8), two spaces between columns, nothing behind the last. */
#include "cli/table.h"

#include <stdio.h>
#include <string.h>

struct table { char *align; size_t columns; GPtrArray *cells; };

struct table *table_new(const char *align)
{
	struct table *t = g_new0(struct table, 1);
	t->align = g_strdup(align);
	t->columns = strlen(align);
	t->cells = g_ptr_array_new_with_free_func(g_free);
	return t;
}

void table_add(struct table *t, ...)
{
	va_list args;
	va_start(args, t);
	for (size_t i = 0; i < t->columns; i++) {
		const char *cell = va_arg(args, const char *);
		g_ptr_array_add(t->cells, g_utf8_make_valid(cell ? cell : "-", -1));
	}
	va_end(args);
}

static size_t width(const struct table *t, size_t column)
{
	size_t most = 0;
	for (size_t i = column; i < t->cells->len; i += t->columns)
		most = MAX(most, (size_t)g_utf8_strlen(t->cells->pdata[i], -1));
	return most;
}

static void add_cell(const struct table *t, size_t i, GString *row)
{
	const char *cell = t->cells->pdata[i];
	size_t column = i % t->columns;
	int pad = (int)(width(t, column) - (size_t)g_utf8_strlen(cell, -1));
	if (t->align[column] == 'r')
		g_string_append_printf(row, "%*s%s  ", pad, "", cell);
	else
		g_string_append_printf(row, "%s%*s  ", cell, pad, "");
}

void table_print(struct table *t)
{
	g_autoptr(GString) row = g_string_new(NULL);
	for (size_t i = 0; i < t->cells->len; i++) {
		add_cell(t, i, row);
		if ((i + 1) % t->columns)
			continue;
		puts(g_strchomp(row->str));
		g_string_truncate(row, 0);
	}
	g_ptr_array_unref(t->cells);
	g_free(t->align);
	g_free(t);
}
