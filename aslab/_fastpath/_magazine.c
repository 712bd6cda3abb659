/* Magazine: a list of free slots, with its bits beside it; and Origin, by which a handle finds its magazine. */

#include "_core.h"

/* A free has put a slot in, and somebody watches, or there are too many now. -1 with an error. */
int magazine_settle(Origin *home)
{
    PyObject *settle, *settled;
    if ((settle = PyObject_GetAttr((PyObject *)home, home->magazine->core->settle)) == NULL)
        return -1;
    settled = PyObject_CallNoArgs(settle);
    Py_DECREF(settle);
    Py_XDECREF(settled);
    return settled == NULL ? -1 : 0;
}

static int magazine_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"capacity", NULL};
    Magazine *magazine = (Magazine *)self;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "n:Magazine", names, &magazine->capacity))
        return -1;
    if (magazine->capacity < 0) {
        PyErr_SetString(PyExc_ValueError, "the capacity of a magazine is not negative");
        return -1;
    }
    magazine->batch = magazine->capacity - magazine->capacity / 2;
    return 0;
}

static PyObject *magazine_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Core *core = core_of(type);
    if (core == NULL)
        return NULL;
    Magazine *magazine = (Magazine *)PyList_Type.tp_new(type, args, kwargs);
    if (magazine != NULL) {
        magazine->core = core;
        magazine->module = Py_NewRef(core->module);
        magazine->detour = magazine->watch = 0;
        magazine->hits = 0;
        magazine->due = PY_SSIZE_T_MAX;
    }
    return (PyObject *)magazine;
}

static int magazine_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Magazine *)self)->module);
    return PyList_Type.tp_traverse(self, visit, arg);
}

static void magazine_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject *module = ((Magazine *)self)->module;
    PyList_Type.tp_dealloc(self);
    Py_XDECREF(module);
    Py_DECREF(type);
}

/* A set of bits; none is False, as in Python, where that is tested faster. */
static PyObject *magazine_get_bits(PyObject *self, void *offset)
{
    long bits = *(long *)((char *)self + (size_t)offset);
    if (bits == 0)
        Py_RETURN_FALSE;
    return PyLong_FromLong(bits);
}

static int magazine_set_bits(PyObject *self, PyObject *value, void *offset)
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "the bits of a magazine cannot be deleted");
        return -1;
    }
    long bits = PyLong_AsLong(value);
    if (bits == -1 && PyErr_Occurred())
        return -1;
    *(long *)((char *)self + (size_t)offset) = bits;
    return 0;
}

static PyMethodDef magazine_methods[] = {METHOD("__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS),
                                         {NULL, NULL, 0, NULL}};
static PyMemberDef magazine_members[] = {{"capacity", T_PYSSIZET, offsetof(Magazine, capacity), 0, NULL},
                                         {"batch", T_PYSSIZET, offsetof(Magazine, batch), 0, NULL},
                                         {"hits", T_PYSSIZET, offsetof(Magazine, hits), 0, NULL},
                                         {"due", T_PYSSIZET, offsetof(Magazine, due), 0, NULL},
                                         {NULL, 0, 0, 0, NULL}};
static PyGetSetDef magazine_getset[] = {
    {"detour", magazine_get_bits, magazine_set_bits, NULL, (void *)offsetof(Magazine, detour)},
    {"watch", magazine_get_bits, magazine_set_bits, NULL, (void *)offsetof(Magazine, watch)},
    {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot magazine_slots[] = {{Py_tp_new, magazine_new},         {Py_tp_init, magazine_init},
                                       {Py_tp_dealloc, magazine_dealloc}, {Py_tp_traverse, magazine_traverse},
                                       {Py_tp_methods, magazine_methods}, {Py_tp_members, magazine_members},
                                       {Py_tp_getset, magazine_getset},   {0, NULL}};
PyType_Spec magazine_spec = {"aslab._fastpath._core.Magazine", sizeof(Magazine), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, magazine_slots};

/* -- Origin */

static int origin_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Origin *)self)->magazine);
    Py_VISIT(((Origin *)self)->lingering);
    Py_VISIT(((Origin *)self)->gone);
    return 0;
}

static int origin_clear(PyObject *self)
{
    Py_CLEAR(((Origin *)self)->magazine);
    Py_CLEAR(((Origin *)self)->lingering);
    Py_CLEAR(((Origin *)self)->gone);
    return 0;
}

static void origin_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    origin_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *origin_get_magazine(PyObject *self, void *Py_UNUSED(closure))
{
    Magazine *magazine = ((Origin *)self)->magazine;
    if (magazine == NULL) {
        PyErr_SetString(PyExc_AttributeError, "magazine");
        return NULL;
    }
    return Py_NewRef((PyObject *)magazine);
}

static int origin_set_magazine(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    Core *core = core_of(Py_TYPE(self));
    if (core == NULL)
        return -1;
    if (value == NULL || !PyObject_TypeCheck(value, core->magazine)) {
        PyErr_SetString(PyExc_TypeError, "magazine is a Magazine");
        return -1;
    }
    Py_XSETREF(((Origin *)self)->magazine, (Magazine *)Py_NewRef(value));
    return 0;
}

static PyObject *origin_get_lingering(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *lingering = ((Origin *)self)->lingering;
    return Py_NewRef(lingering == NULL ? Py_None : lingering);
}

static int origin_set_lingering(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    Origin *home = (Origin *)self;
    if (value == NULL || (value != Py_None && !PyDict_Check(value))) {
        PyErr_SetString(PyExc_TypeError, "lingering is a dict or None");
        return -1;
    }
    if (home->gone == NULL && (home->gone = PyCFunction_New(&kept_gone, self)) == NULL)
        return -1;
    Py_XSETREF(home->lingering, value == Py_None ? NULL : Py_NewRef(value));
    return 0;
}

static PyMethodDef origin_methods[] = {METHOD("__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS),
                                       {NULL, NULL, 0, NULL}};
static PyMemberDef origin_members[] = {{"size", T_PYSSIZET, offsetof(Origin, size), 0, NULL},
                                       {"seen", T_BOOL, offsetof(Origin, seen), 0, NULL},
                                       {"movable", T_BOOL, offsetof(Origin, movable), 0, NULL},
                                       {NULL, 0, 0, 0, NULL}};
static PyGetSetDef origin_getset[] = {{"magazine", origin_get_magazine, origin_set_magazine, NULL, NULL},
                                      {"lingering", origin_get_lingering, origin_set_lingering, NULL, NULL},
                                      {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot origin_slots[] = {{Py_tp_new, PyType_GenericNew},     {Py_tp_dealloc, origin_dealloc},
                                     {Py_tp_traverse, origin_traverse},  {Py_tp_clear, origin_clear},
                                     {Py_tp_methods, origin_methods},    {Py_tp_members, origin_members},
                                     {Py_tp_getset, origin_getset},      {0, NULL}};
PyType_Spec origin_spec = {"aslab._fastpath._core.Origin", sizeof(Origin), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, origin_slots};
